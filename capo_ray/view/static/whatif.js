// The credit of one group by another method, vote or weight, computed from the evidence that was kept.
"use strict";

async function whatifPage(where) {
  const { run, group } = where;
  const line = await source.get(`runs/${run}/groups/${group}`);
  const methods = await source.get(`runs/${run}/methods`);
  const chosen = (where.methods || `${methods.own},${methods.own === "grpo" ? "dr_grpo" : "grpo"}`).split(",").filter(Boolean).slice(0, 4);
  const sets = where.set || "";
  const credits = await Promise.all(chosen.map((method) => source.get(`runs/${run}/groups/${group}/credit`, { method, set: sets })));
  const change = (more) => go("whatif", { ...where, ...more });
  const picker = chosen.concat("").map((method, i) => el("select", { "aria-label": `method ${i + 1}`, class: "method", onchange: (e) => {
    const next = [...chosen]; next[i] = e.target.value; change({ methods: next.filter(Boolean).join(",") });
  } }, ["", ...methods.all].map((name) => el("option", { value: name, selected: name === method }, name || "add a method …"))));
  const settings = el("input", { type: "search", id: "set", value: sets, placeholder: "credit.vote=union credit.w_process=1 …", "aria-label": "settings",
    onkeydown: (e) => { if (e.key === "Enter") change({ set: e.target.value }); } });
  const columns = credits.map((found, i) => el("section", { class: "card credit", "data-method": chosen[i] }, el("h2", {}, chosen[i]),
    found.refused ? el("p", { class: "refused" }, found.refused) : creditColumn(line, found)));
  return [el("h1", {}, `What if: update ${line.update}, problem `, shown(line.id)),
    el("div", { class: "bar" }, el("a", { href: `#/group?${new URLSearchParams({ run, group })}` }, "← the group"), picker, source.live && settings),
    el("div", { class: "credits" }, columns),
    el("p", { class: "note" }, "Each column is what `capo-ray credit METHOD` gives for this line. Methods that put a whole batch on one scale show the group before that.")];
}

function creditColumn(line, found) {
  const most = Math.max(...found.responses.flatMap((r) => r.advantages.map(Math.abs)), 1e-9);
  const rows = found.responses.map((credit, i) => {
    const response = { ...line.responses[i], steps: credit.steps, credit: { advantages: credit.advantages, step_weights: credit.wrong } };
    const blocks = credit.steps.slice(0, 200).map((_, k) => stepBlock(response, k, credit.advantages, (x) => x / most, false));
    return el("details", { open: i < 2 }, el("summary", {}, `response ${i + 1} `, verdictWords(response)), blocks);
  });
  const audit = Object.entries(found.audit).map(([name, value]) => el("tr", {}, el("td", {}, name), el("td", { "data-audit": name }, number(value))));
  return [rows, el("table", {}, el("tbody", {}, audit))];
}
