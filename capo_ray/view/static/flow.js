// Groups' lives: when each was generated, verified, critiqued, credited and trained; and what the ledger counts.
"use strict";

const STAGES = [["generated", "#2f6fde", "generating"], ["verified", "#0aa3a3", "verifying"], ["critiqued", "#b23fb0", "critics"],
  ["credited", "#c2a100", "credit"], ["trained", "#2a9d5c", "waiting to be trained"], ["dropped", "#b3261e", "dropped"]];

async function flowPage(where) {
  const runs = await source.runs(), run = where.run ?? runs[0].id;
  const told = await source.get(`runs/${run}/flow`, { update: where.update || "" });
  if (!told.groups.length) return [el("h1", {}, "Flow"), el("p", { class: "note" }, "The ledger of this run holds no groups yet.")];
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
  const legend = STAGES.map(([, shade, words]) => el("span", { class: "note" }, el("span", { class: "swatch", style: `background:${shade}` }), words));
  const counts = [...Object.entries(told.counts), ...Object.entries(told.reasons).map(([reason, n]) => [`dropped: ${reason}`, n])];
  const pick = el("input", { type: "number", min: 1, value: told.update, "aria-label": "update", onchange: (e) => go("flow", { run, update: e.target.value }) });
  return [el("h1", {}, "Flow"), el("div", { class: "bar" }, "groups trained or dropped around update ", pick, legend),
    el("div", { class: "card" }, lanes, el("div", { class: "note" }, `${number(span)} s from left to right; a lane is a group, in the order of its birth`)),
    el("h2", {}, "Ledger"), el("table", {}, el("tbody", {}, counts.map(([name, n]) => el("tr", {}, el("td", {}, shown(name)), el("td", {}, String(n)))))),
    el("p", { class: told.balanced ? "note" : "wrong" }, told.balanced ? "balanced: every trajectory is trained in exactly one update or dropped with a reason"
      : "not balanced yet: trajectories are under way, or the run was broken off")];
}
