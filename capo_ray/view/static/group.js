// One group: its siblings side by side, every step with its votes, every token in the colour of a strip.
"use strict";

const STRIPS = { advantages: "advantage", token_rewards: "token reward", logprobs: "surprise (−logprob)", ratios: "log ratio to the sampler", entropies: "entropy", versions: "weights version", none: "plain" };

function stripOf(response, name) {
  const credit = response.credit || {}, n = response.tokens.length;
  if (name === "advantages" || name === "token_rewards") return credit[name] || null;
  if (name === "logprobs") return response.logprobs ? response.logprobs.map((x) => (x === null ? 0 : -Math.abs(x))) : null;
  if (name === "ratios") return response.policy_logprobs && response.logprobs ? response.policy_logprobs.map((x, t) => (x === null || response.logprobs[t] === null ? 0 : +(x - response.logprobs[t]).toFixed(4))) : null;
  if (name === "entropies") return (response.entropies || response.policy_entropies)?.map((x) => -Math.abs(x)) || null;
  if (name === "versions") {
    const row = [];
    for (const [version, end] of response.versions || []) while (row.length < Math.min(end, n)) row.push(version);
    return row.length === n ? row : null;
  }
  return new Array(n).fill(0);
}

function scaleOf(responses, name) {
  const values = responses.flatMap((r) => stripOf(r, name) || []).filter(Number.isFinite);
  const most = values.reduce((a, b) => Math.max(a, b), -Infinity), least = values.reduce((a, b) => Math.min(a, b), Infinity);
  if (name === "versions") return (x) => (most > least ? ((x - least) / (most - least)) * 2 - 1 : 0);
  const size = Math.max(Math.abs(most), Math.abs(least)) || 1;
  return (x) => x / size;
}

// The tokens of a span; neighbours of one shade stand in one element.
function tokens(response, start, end, values, scale) {
  const parts = [];
  let text = "", level = null, from = start;
  const close = (until) => {
    if (until === end) text = text.replace(/\n+$/, ""); // a step's own line break is shown by the next step's place
    if (!text) return;
    const mean = values ? values.slice(from, until).reduce((a, b) => a + b, 0) / (until - from) : null;
    parts.push(el("span", { style: colour(level), title: values ? `tokens ${from} to ${until - 1}: ${number(mean)}` : null }, shown(text)));
  };
  for (let t = start; t < end; t++) {
    const now = values ? shade(scale(values[t] ?? 0)) : 0;
    if (now !== level) { close(t); text = ""; level = now; from = t; }
    text += response.tokens[t];
  }
  close(end);
  return parts;
}

function voteDots(response, step) {
  const flags = response.flagged || [];
  if (!flags.length) return null;
  const dots = flags.map((flag) => (flag === null ? "–" : flag.includes(step) ? "●" : "○")).join("");
  const count = flags.filter((flag) => flag && flag.includes(step)).length;
  return tipped(el("span", { class: "dots", tabindex: 0, "aria-label": `${count} of ${flags.length} votes flag this step` }, dots), () => [
    el("b", {}, `${count} of ${flags.length} votes flag step ${step + 1}`),
    (response.votes || []).map((vote, i) => el("div", { class: "said" }, `${flags[i] === null ? "–" : flags[i].includes(step) ? "●" : "○"} `,
      shown((vote.text || vote.reason || "").slice(0, 1500)))),
  ]);
}

function stepBlock(response, index, values, scale, chosen) {
  const [start, end] = response.steps[index];
  const weight = (response.credit?.step_weights || [])[index] || 0;
  const advantage = (response.credit?.advantages || []).slice(start, end);
  const mean = advantage.length ? advantage.reduce((a, b) => a + b, 0) / advantage.length : null;
  return el("div", { class: `step${weight > 0 ? " flagged" : ""}${chosen ? " chosen" : ""}`, "data-step": index },
    voteDots(response, index), el("div", { class: "said" }, tokens(response, start, end, values, scale)),
    el("div", { class: "note" }, `step ${index + 1}  advantage ${number(mean)}${weight ? `  held wrong ${number(weight)}` : ""}`));
}

function verdictWords(response) {
  const reward = response.reward;
  return [el("b", { class: reward === null ? "none" : reward ? "right" : "wrong" }, reward === null ? "invalid" : reward ? "✓ right" : "✗ wrong"),
    response.extracted ? [" answer ", el("code", {}, shown(response.extracted))] : " no answer", `  ${response.tokens.length} tokens`,
    response.finish === "length" ? "  cut at the limit" : ""];
}

function sibling(response, index, strip, scale, where) {
  const values = strip === "none" ? null : stripOf(response, strip);
  const mine = String(where.sample) === String(index);
  const limit = 400;
  const blocks = response.steps.slice(0, limit).map((_, k) => stepBlock(response, k, values, scale, mine && String(where.step) === String(k)));
  if (response.steps.length > limit) blocks.push(el("p", { class: "note" }, `and ${response.steps.length - limit} more steps (export the group to read them)`));
  return el("article", { class: `sibling${mine ? " chosen" : ""}`, "data-sample": index }, el("h2", {}, `response ${index + 1}  `, verdictWords(response)),
    values === null && strip !== "none" ? el("p", { class: "note" }, `no ${STRIPS[strip]} was kept`) : null, blocks);
}

async function groupPage(where) {
  const { run, group } = where;
  const line = await source.get(`runs/${run}/groups/${group}`);
  const strip = where.strip || "advantages";
  let responses = line.responses.map((response, index) => ({ ...response, index }));
  const order = where.order || "sample";
  const split = (r) => (r.flagged || []).length ? r.steps.filter((_, k) => { const n = r.flagged.filter((f) => f && f.includes(k)).length; return n > 0 && n < r.flagged.length; }).length : 0;
  if (order === "reward") responses.sort((a, b) => (b.reward ?? -1) - (a.reward ?? -1));
  if (order === "length") responses.sort((a, b) => b.tokens.length - a.tokens.length);
  if (order === "disagreement") responses.sort((a, b) => split(b) - split(a));
  const scale = scaleOf(line.responses, strip);
  const change = (more) => go("group", { ...where, ...more });
  const buttons = Object.entries(STRIPS).map(([key, words]) => el("button", { "aria-pressed": String(key === strip), onclick: () => change({ strip: key }) }, words));
  const orders = el("select", { "aria-label": "order", onchange: (e) => change({ order: e.target.value }) },
    ["sample", "reward", "length", "disagreement"].map((key) => el("option", { value: key, selected: key === order }, `by ${key}`)));
  const blocks = responses.map((response) => sibling(response, response.index, strip, scale, where));
  blocks.forEach((block) => block.addEventListener("click", (event) => {
    const step = event.target.closest(".step");
    if (step && !String(getSelection())) change({ sample: block.dataset.sample, step: step.dataset.step });
  }));
  const shade = strip === "none" ? null : el("span", { class: "note" }, el("span", { class: "swatch", style: colour(16) }), "raised, likelier to the learner, newer   ",
    el("span", { class: "swatch", style: colour(-16) }), "lowered, less likely, surprising, older");
  return [el("h1", {}, `Update ${line.update}, problem `, shown(line.id)), el("div", { class: "card" }, el("div", { class: "said" }, shown(line.question)),
    line.answer ? el("div", { class: "note" }, "reference ", el("code", {}, shown(line.answer))) : null),
    el("div", { class: "bar" }, buttons, orders, el("a", { href: `#/whatif?${new URLSearchParams({ run, group })}` }, "what if another method had given the credit?"), shade),
    el("div", { class: "siblings" }, blocks),
    source.live && el("p", {}, el("a", { href: source.address(`runs/${run}/export`, { ids: group }), download: `group-${group}.jsonl` }, "export this group as JSONL"))];
}
