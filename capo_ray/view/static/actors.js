// Who worked for which group, a lane for each actor; hatched: it waited, and for whom.
"use strict";

const ERRANDS = { evaluation: "#8b95a1", publish: "#5d6670", update: "#5d6670" };
const groupColour = (group) => `hsl(${(group * 67) % 360} 58% 52%)`;

// What goes on at the same time lies below each other: [work, row], and how many rows there are.
function stacked(works) {
  const ends = [];
  const placed = works.map((work) => {
    let row = ends.findIndex((end) => end <= work[0]);
    if (row < 0) row = ends.length;
    ends[row] = work[1];
    return [work, row];
  });
  return [placed, Math.max(1, ends.length)];
}

function actorLanes(told, actors, start, span, where) {
  const chosen = where.group === undefined ? null : Number(where.group);
  const problems = new Map(told.groups.map((group) => [group.group, group.problem]));
  const name = (group) => problems.has(group) ? `group ${group}, problem ${problems.get(group)}` : `group ${group}`;
  const when = (from, until) => `${number(until - from)} s, from ${number(from - start)} to ${number(until - start)} s`;
  const box = (from, until) => {
    const left = Math.max(0, (from - start) / span), right = Math.min(1, (until - start) / span);
    return right < 0 || left > 1 ? null : `left:${left * 100}%;width:${Math.max(0, right - left) * 100}%;`;
  };
  let tier = "";
  const lanes = actors.flatMap((actor) => {
    const who = `${actor.tier} ${actor.actor}`;
    const [placed, rows] = stacked(actor.works), height = Math.max(3, Math.min(11, 66 / rows));
    const bars = placed.map(([[from, until, group, errand], row]) => {
      const place = box(from, until);
      if (!place) return null;
      const words = `${who}: ${group === null ? errand : name(group)}, ${when(from, until)}`;
      return tipped(el("i", { class: group === null ? "errand" : chosen !== null && chosen !== group ? "dim" : null, "data-group": group, "data-errand": errand,
        style: `${place}top:${row * (height + 1)}px;height:${height}px;bottom:auto;background:${group === null ? ERRANDS[errand] || "#8b95a1" : groupColour(group)}`,
        onclick: group === null ? null : () => go("flow", { ...where, update: told.update, group: group === chosen ? null : group }) }), () => shown(words));
    });
    const waits = actor.waits.map(([from, until, whom, group]) => {
      const place = box(from, until);
      return place && tipped(el("i", { class: "wait", "data-for": whom, style: place }), () => shown(`${who} waited ${when(from, until)}, for ${whom}${group === null ? "" : `, ${name(group)}`}`));
    });
    const first = actor.tier !== tier;
    tier = actor.tier;
    const lane = el("div", { class: "lane", style: `height:${rows * (height + 1) + 1}px` }, waits, bars);
    return [first ? el("h3", { class: "note" }, tier) : null, el("div", { class: "actor", "data-actor": who }, el("span", { class: "note" }, `${who}: idle ${number(actor.idle_s)} s`), lane)];
  });
  return [el("h2", {}, "Who worked for which group"), el("div", { class: "card" }, lanes,
    el("div", { class: "note" }, "A colour is a group, grey an evaluation or a publish; hatched: the actor waited, for whoever had the group that it took up next. A click follows a group.")),
    chosen === null ? waitsTable(actors) : lifeTable(actors, chosen, name(chosen), start)];
}

// One group's way from actor to actor, with what it waited in between.
function lifeTable(actors, chosen, title, start) {
  const works = actors.flatMap((actor) => actor.works.filter((work) => work[2] === chosen).map((work) => [`${actor.tier} ${actor.actor}`, ...work]));
  works.sort((a, b) => a[1] - b[1]);
  let end = null;
  const rows = works.map(([who, from, until]) => {
    const waited = end === null ? null : Math.max(0, from - end);
    end = Math.max(end ?? until, until);
    return el("tr", {}, [who, number(from - start), number(until - from), number(waited)].map((cell) => el("td", {}, cell)));
  });
  return [el("h2", {}, shown(title)), el("table", { id: "life" }, el("thead", {}, el("tr", {}, ["actor", "began (s)", "worked (s)", "the group had waited (s)"].map((head) => el("th", {}, head)))), el("tbody", {}, rows))];
}

function waitsTable(actors) {
  const sums = new Map();
  for (const actor of actors) for (const [from, until, whom] of actor.waits) {
    const pair = `${actor.tier} ${actor.actor}\n${whom}`;
    sums.set(pair, (sums.get(pair) || 0) + until - from);
  }
  const most = [...sums].sort((a, b) => b[1] - a[1]).slice(0, 12);
  if (!most.length) return null;
  const rows = most.map(([pair, seconds]) => el("tr", {}, [...pair.split("\n"), number(seconds)].map((cell) => el("td", {}, cell))));
  return [el("h2", {}, "Who waited for whom"), el("table", { id: "waits" }, el("thead", {}, el("tr", {}, ["who", "for whom", "seconds"].map((head) => el("th", {}, head)))), el("tbody", {}, rows))];
}
