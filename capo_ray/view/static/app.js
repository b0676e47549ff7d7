// The page: which view the address names, where figures come from, keys.
"use strict";

const embedded = document.getElementById("embedded");
const DATA = embedded ? JSON.parse(embedded.textContent) : null;

const source = {
  live: DATA === null,
  address(path, params = {}) {
    const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== "" && value !== undefined));
    return `api/${path}?${query}`;
  },
  async get(path, params = {}) {
    if (DATA) return stored(path, params);
    const answer = await fetch(this.address(path, params));
    if (!answer.ok) throw new Error(answer.status === 401 ? "the page's token is not known any more: open the address that capo-ray view printed"
      : (await answer.json().catch(() => ({}))).error || `the server answered ${answer.status}`);
    return answer.json();
  },
  async runs() { return this.get("runs"); },
};

// In a report everything is here already; lists are sorted and filtered by what the writer chose.
function stored(path, params) {
  const [, id, kind, index, what] = path.split("/");
  if (path === "runs") return DATA.runs;
  const run = DATA.content[id];
  if (kind === "series") return run.series;
  if (kind === "groups" && what === "credit") return run.credits[index]?.[params.method] || { refused: "this method is not in the report" };
  if (kind === "groups" && index !== undefined) return run.groups[index] || (() => { throw new Error("this group is not in the report"); })();
  if (kind === "groups") {
    const fits = (head) => params.update === "" || String(head.update) === String(params.update);
    return { groups: run.heads.filter(fits), total: run.heads.filter(fits).length };
  }
  return run[kind];
}

const PAGES = { overview: overviewPage, groups: groupsPage, group: groupPage, whatif: whatifPage, critic: criticPage, flow: flowPage };

function go(page, where) {
  const kept = Object.entries(where).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  location.hash = `#/${page}?${new URLSearchParams(kept)}`;
}

function here() {
  const [page, query] = location.hash.replace(/^#\/?/, "").split("?");
  return [page in PAGES ? page : "overview", Object.fromEntries(new URLSearchParams(query || ""))];
}

let drawing = 0;
async function draw(quiet = false) {
  const turn = ++drawing, [page, where] = here(), main = document.getElementById("page");
  for (const link of document.querySelectorAll("nav a")) link.toggleAttribute("aria-current", link.hash.slice(2) === page);
  if (!quiet) document.getElementById("tip").hidden = true;
  let content;
  try { content = await PAGES[page](where); } catch (error) { content = [el("p", { class: "refused", role: "alert" }, error.message)]; }
  if (turn !== drawing) return;
  const left = main.querySelector(".siblings")?.scrollLeft;
  main.replaceChildren(...content.flat(9).filter(Boolean));
  if (left && main.querySelector(".siblings")) main.querySelector(".siblings").scrollLeft = left;
  if (!quiet) main.querySelector(".step.chosen")?.scrollIntoView({ block: "center", inline: "center" });
  main.dataset.page = page;
  main.dataset.drawn = turn;
}

// While a run writes, pages that show its course are drawn anew; what one reads stays as it is.
function follow() {
  const events = new EventSource("api/events");
  events.onmessage = (event) => {
    const state = JSON.parse(event.data);
    document.getElementById("status").textContent = state.map((run) => `${run.name}: ${run.status}, update ${run.updates}`).join("   ");
    const [page] = here();
    if (["overview", "critic", "flow"].includes(page) && document.activeElement?.tagName !== "INPUT") draw(true);
  };
  events.onerror = () => { document.getElementById("status").textContent = "the server is gone; this page shows what it had"; };
}

const KEYS = [["o", "overview"], ["g", "groups"], ["c", "critic"], ["f", "flow"], ["j / k", "the next, the previous group"], ["1 … 7", "what colours the tokens"],
  ["w", "what if"], ["/", "search"], ["t", "dark or light"], ["?", "this list"]];

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
  const [page, where] = here(), key = event.key;
  const jump = { o: "overview", g: "groups", c: "critic", f: "flow" }[key];
  if (jump) go(jump, where.run ? { run: where.run } : {});
  else if (key === "/") { event.preventDefault(); page === "groups" ? document.getElementById("search").focus() : go("groups", { run: where.run }); }
  else if (key === "t") document.getElementById("theme").click();
  else if (key === "?") document.getElementById("keys").click();
  else if (["group", "whatif"].includes(page) && "jk".includes(key)) go(page, { ...where, sample: "", step: "", group: Math.max(0, Number(where.group) + (key === "j" ? 1 : -1)) });
  else if (page === "group" && key === "w") go("whatif", { run: where.run, group: where.group });
  else if (page === "group" && "1234567".includes(key)) go("group", { ...where, strip: Object.keys(STRIPS)[Number(key) - 1] });
});

document.getElementById("theme").addEventListener("click", () => {
  const dark = document.documentElement.classList.toggle("dark");
  try { localStorage.setItem("capo-ray-theme", dark ? "dark" : "light"); } catch { /* a file without storage */ }
});
document.getElementById("keys").addEventListener("click", () => {
  const help = document.getElementById("help");
  help.replaceChildren(el("h2", {}, "Keys"), el("table", {}, el("tbody", {}, KEYS.map(([key, words]) => el("tr", {}, el("td", {}, el("kbd", {}, key)), el("td", {}, words))))),
    el("form", { method: "dialog" }, el("button", {}, "close")));
  help.showModal();
});

let theme = null;
try { theme = localStorage.getItem("capo-ray-theme"); } catch { /* a file without storage */ }
if (theme === "dark" || (theme === null && matchMedia("(prefers-color-scheme: dark)").matches)) document.documentElement.classList.add("dark");
addEventListener("hashchange", () => draw());
draw();
if (source.live) follow();
