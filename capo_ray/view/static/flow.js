// Groups' lives: when each was generated, verified, critiqued, credited and trained; and what the ledger counts.
"use strict";

const STAGES = [["generated", "#2f6fde", "generating"], ["verified", "#0aa3a3", "verifying"], ["critiqued", "#b23fb0", "critics"],
  ["credited", "#c2a100", "credit"], ["trained", "#2a9d5c", "waiting to be trained"], ["dropped", "#b3261e", "dropped"]];

async function flowPage(where) {
  const runs = await source.runs(), run = where.run ?? runs[0].id;
  const told = await source.get(`runs/${run}/flow`, { update: where.update || "" });
  if (told.refused) return [el("h1", {}, "Flow"), el("p", { class: "refused", role: "alert" }, shown(told.refused))];
  if (!told.groups.length) return [el("h1", {}, "Flow"), el("p", { class: "note" }, "The ledger of this run holds no groups yet.")];
  const actors = told.actors || [];  // none: the run is of before it was noted who worked
  const start = told.groups.reduce((a, g) => Math.min(a, g.born), Infinity), end = told.groups.reduce((a, g) => Math.max(a, g.end), 0);
  const span = Math.max(1e-3, end - start);
  const lanes = told.groups.map((group) => {
    let from = group.born;
    const bars = [];
    for (const [state, shade, words] of STAGES) {
      const until = group.times[state];
      if (!until) continue;
      bars.push(el("i", { style: `left:${(from - start) / span * 100}%;width:${Math.max(0.05, (until - from) / span * 100)}%;background:${shade}`,
        title: `group ${group.group}, ${words}: ${number(until - from)} s` }));
      from = until;
    }
    return el("div", { class: "lane" }, bars);
  });
  // Who had how many groups when: what piles up before the learner waits for it, what is thin makes others wait.
  const bins = 120, known = actors.length ? 0 : 1, tiers = STAGES.slice(known, 5).map(([state, shade, words], i) => {
    const counts = new Array(bins).fill(0);
    for (const group of told.groups) {
      const until = group.times[state];
      if (!until) continue;
      const before = STAGES.slice(0, known + i).map(([name]) => group.times[name]).filter(Boolean);
      const first = Math.floor((Math.max(group.born, ...before) - start) / span * bins), last = Math.ceil((until - start) / span * bins);
      for (let i = Math.max(0, first); i < Math.min(bins, last); i++) counts[i] += 1;
    }
    const most = Math.max(...counts), bars = counts.map((n, i) => n ? el("i", { style: `left:${i / bins * 100}%;width:${100 / bins}%;background:${shade};opacity:${0.15 + 0.85 * n / most}`,
      title: `${number((i + 0.5) / bins * span)} s: ${n} groups` }) : null);
    return el("div", { class: "tier", "data-tier": words }, el("span", { class: "note" }, `${words}, ${most} at most`), el("div", { class: "lane" }, bars));
  });
  const depths = [["queue/in_flight_groups", "groups under way"], ["queue/finished_groups", "groups that wait for the learner", true], ["rollout/waiting_requests", "requests before engines", "dots"],
    ["critic/waiting_requests", "requests before critics", "both"], ["verifier/queued_pairs", "answers before verifiers", true]];
  const series = await source.get(`runs/${run}/series`, { names: depths.map(([name]) => name).join(",") });
  const there = depths.filter(([name]) => series[name]?.length);
  const lines = there.map(([name, words, dashed], i) => ({ name: words, dashed, colour: RUN_COLOURS[i], points: series[name] }));
  const queues = el("div", { class: "card" }, lineChart(lines, { label: "queues", onpick: (_, update) => go("flow", { run, update }) }),
    el("div", { class: "note" }, there.map(([, words], i) => [el("span", { class: "swatch", style: `background:${RUN_COLOURS[i]}` }), words, "   "])));
  const legend = STAGES.slice(known).map(([, shade, words]) => el("span", { class: "note" }, el("span", { class: "swatch", style: `background:${shade}` }), words));
  const counts = [...Object.entries(told.counts), ...Object.entries(told.reasons).map(([reason, n]) => [`dropped: ${reason}`, n])];
  const pick = el("input", { type: "number", min: 1, value: told.update, "aria-label": "update", onchange: (e) => go("flow", { run, update: e.target.value }) });
  return [el("h1", {}, "Flow"), el("div", { class: "bar" }, "groups trained or dropped around update ", pick),
    actors.length ? actorLanes(told, actors, start, span, where) : el("p", { class: "note" }, "This run did not note which actor worked for which group: it is of an older version."),
    el("h2", {}, "Each group's life"), el("div", { class: "bar" }, legend),
    el("div", { class: "card" }, lanes, el("div", { class: "note" }, `${number(span)} s from left to right; a lane is a group, in the order of its birth`)),
    el("h2", {}, "Groups at each tier"), el("div", { class: "card" }, tiers),
    el("h2", {}, "Queues at the end of each update"), queues,
    el("h2", {}, "Ledger"), el("table", {}, el("tbody", {}, counts.map(([name, n]) => el("tr", {}, el("td", {}, shown(name)), el("td", {}, String(n)))))),
    el("p", { class: told.balanced ? "note" : "wrong" }, told.balanced ? "balanced: every trajectory is trained in exactly one update or dropped with a reason"
      : "not balanced yet: trajectories are under way, or the run was broken off")];
}
