// The critic over the run, and where it and the verifier part.
"use strict";

async function criticPage(where) {
  const runs = await source.runs(), run = where.run ?? runs[0].id;
  const names = ["critic/agreement_frac", "critic/invalid_frac", "critic/abstained_frac", "critic/canary_precision_frac", "critic/canary_recall_frac",
    "critic/lenient_gap_frac", "critic/strict_gap_frac", "critic/tokens_per_critique", "critic/critique_s", "critic/exposed_s", "critic/cache_hit_frac"];
  const series = await source.get(`runs/${run}/series`, { names: names.join(",") });
  const card = (title, wanted, share) => {
    const lines = wanted.filter(([name]) => series[name]?.length).map(([name, words, dashed]) => ({ name: words, dashed, colour: RUN_COLOURS[0], points: series[name] }));
    return lines.length ? el("section", { class: "card" }, el("h2", {}, title), lineChart(lines, { share, label: title, onpick: (_, update) => go("groups", { run, update }) }),
      el("div", { class: "note" }, legend(wanted))) : null;
  };
  const told = await source.get(`runs/${run}/critic`);
  const examples = (title, list) => list.length ? el("section", {}, el("h2", {}, title), el("ul", {}, list.map((one) => el("li", {},
    el("a", { href: `#/group?${new URLSearchParams({ run, group: one.index })}` }, `update ${one.update}, problem `, shown(one.problem)), `  ${one.words}`)))) : null;
  const facts = Object.entries(told.facts).map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", {}, typeof value === "number" ? number(value) : shown(value))));
  const kinds = told.kinds.map((one) => el("tr", { "data-kind": one.kind }, el("td", {}, el("code", {}, shown(one.kind))), el("td", {}, String(one.judged)), el("td", {}, String(one.wrong)),
    el("td", {}, number(one.wrong / one.judged)), el("td", {}, one.example ? el("a", { href: `#/group?${new URLSearchParams({ run, ...one.example })}` }, "the newest") : "")));
  const heads = ["kind (# is a number)", "judged", "held wrong", "share", ""].map((x) => el("th", {}, x));
  return [el("h1", {}, "Critic"), el("table", {}, el("tbody", {}, facts)), el("div", { class: "cards" },
    card("Agreement of votes", [["critic/agreement_frac", "pairs that agree"]], true),
    card("Votes that say nothing", [["critic/invalid_frac", "unreadable"], ["critic/abstained_frac", "responses without a vote", true]], true),
    card("Canaries", [["critic/canary_precision_frac", "precision"], ["critic/canary_recall_frac", "recall", true]], true),
    card("Against the verifier", [["critic/lenient_gap_frac", "lenient"], ["critic/strict_gap_frac", "strict", true]], true),
    card("Cost of a critique", [["critic/tokens_per_critique", "tokens"]], false),
    card("Waiting for critics", [["critic/exposed_s", "seconds of an update"], ["critic/critique_s", "seconds of a critique", true]], false)),
    kinds.length ? el("section", {}, el("h2", {}, "Most flagged kinds of steps, of the newest groups"),
      el("table", { class: "kinds" }, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, kinds))) : null,
    examples("Lenient: no step flagged, the answer wrong", told.lenient), examples("Strict: steps flagged, the answer right", told.strict),
    examples("Votes that differ most", told.split)];
}
