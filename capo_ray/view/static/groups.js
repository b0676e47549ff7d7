// A list of groups: sorted, filtered, searched, exported.
"use strict";

const SORTS = { update: "newest", reward: "lowest reward", length: "longest", disagreement: "votes differ most", gap: "critic against verifier" };
const FILTERS = { "": "all", wrong: "all wrong", right: "all right", mixed: "mixed outcomes", split: "split votes", gap: "critic against verifier", flagged: "flagged steps" };

async function groupsPage(where) {
  const runs = await source.runs();
  const run = where.run ?? runs[0].id, offset = Number(where.offset || 0);
  const asked = { sort: where.sort || "update", filter: where.filter || "", find: where.find || "", update: where.update || "", offset, limit: 50 };
  const found = await source.get(`runs/${run}/groups`, asked);
  const change = (more) => go("groups", { ...where, run, offset: 0, ...more });
  const select = (name, options, value) => el("select", { "aria-label": name, onchange: (e) => change({ [name]: e.target.value }) },
    Object.entries(options).map(([key, words]) => el("option", { value: key, selected: key === String(value) }, words)));
  const search = el("input", { type: "search", placeholder: "words in questions and responses ( / )", value: asked.find, id: "search",
    onkeydown: (e) => { if (e.key === "Enter") change({ find: e.target.value }); } });
  const bar = el("div", { class: "bar" },
    runs.length > 1 && select("run", Object.fromEntries(runs.map((r) => [r.id, r.name])), run),
    select("filter", FILTERS, asked.filter), select("sort", SORTS, asked.sort), search,
    asked.update !== "" && el("button", { onclick: () => change({ update: "" }) }, `update ${asked.update} ✕`),
    source.live && el("a", { href: source.address(`runs/${run}/export`, { ...asked, limit: 1000 }), download: "groups.jsonl" }, "export as JSONL"));
  const rows = found.groups.map((head) => {
    const open = () => go("group", { run, group: head.index });
    const rewards = head.rewards.map((r) => el("span", { class: r === null ? "none" : r ? "right" : "wrong" }, r === null ? "· " : r ? "✓ " : "✗ "));
    return el("tr", { class: "row", tabindex: 0, onclick: open, onkeydown: (e) => e.key === "Enter" && open() },
      el("td", {}, String(head.update)), el("td", {}, shown(head.problem)), el("td", {}, rewards),
      el("td", {}, number(head.tokens.reduce((a, b) => a + b, 0) / Math.max(1, head.tokens.length))),
      el("td", { class: "wide" }, String(head.flagged_steps)), el("td", { class: "wide" }, String(head.split_steps)), el("td", { class: "wide" }, String(head.against_verifier)));
  });
  const titles = ["update", "problem", "verdicts", "tokens"].map((x) => el("th", {}, x))
    .concat(["flagged steps", "steps with split votes", "against the verifier"].map((x) => el("th", { class: "wide" }, x)));
  const pages = el("div", { class: "bar" },
    offset > 0 && el("button", { onclick: () => go("groups", { ...where, run, offset: offset - 50 }) }, "← before"),
    el("span", { class: "note" }, found.total ? `${offset + 1} to ${offset + found.groups.length} of ${found.total}` : "no group fits"),
    offset + 50 < found.total && el("button", { onclick: () => go("groups", { ...where, run, offset: offset + 50 }) }, "after →"));
  return [el("h1", {}, "Groups"), bar, el("table", {}, el("thead", {}, el("tr", {}, titles)), el("tbody", {}, rows)), pages];
}
