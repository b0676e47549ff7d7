// Line charts in SVG: lines of [x, y, low?, high?], a band where there is an interval, a dot to click on.
"use strict";

function ticks(low, high, wanted = 4) {
  const span = high - low || 1;
  const rough = span / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power;
  const found = [];
  for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-9; x += step) found.push(+x.toPrecision(12));
  return found;
}

// How lines of one colour are told apart: the stroke, and how a legend writes it.
const STROKES = { true: ["5 4", "- - "], dots: ["1.5 3.5", "··· "], both: ["10 3 1.5 3", "-·- "] };
const legend = (lines) => lines.map(([, words, dashed]) => `${STROKES[dashed]?.[1] ?? "— "}${words}`).join("   ");

// lines: [{name, colour, points: [[x, y, low, high]], dashed}]; onpick(line, x) when a dot is clicked.
function lineChart(lines, { share = false, onpick = null, height = 190, label = "" } = {}) {
  const W = 420, H = height, L = 44, R = 8, T = 8, B = 22;
  const all = lines.flatMap((line) => line.points).filter((p) => Number.isFinite(p[1]));
  if (!all.length) return el("p", { class: "note" }, "nothing yet");
  const xs = all.map((p) => p[0]), ys = all.flatMap((p) => [p[1], p[2] ?? p[1], p[3] ?? p[1]]);
  const x0 = xs.reduce((a, b) => Math.min(a, b)), x1 = Math.max(xs.reduce((a, b) => Math.max(a, b)), x0 + 1);
  let y0 = share ? 0 : ys.reduce((a, b) => Math.min(a, b)), y1 = share ? 1 : ys.reduce((a, b) => Math.max(a, b));
  if (!share) { const room = (y1 - y0 || Math.abs(y1) || 1) * 0.06; y0 = y0 >= 0 && y0 < 0.5 * y1 ? 0 : y0 - room; y1 += room; }
  const X = (x) => L + (x - x0) / (x1 - x0) * (W - L - R), Y = (y) => H - B - (y - y0) / (y1 - y0 || 1) * (H - T - B);
  const svg = el("svg:svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label });
  for (const y of ticks(y0, y1)) svg.append(el("svg:line", { class: "grid", x1: L, x2: W - R, y1: Y(y), y2: Y(y) }),
    el("svg:text", { x: L - 5, y: Y(y) + 4, "text-anchor": "end" }, number(y)));
  for (const x of ticks(x0, x1, 6)) if (Number.isInteger(x)) svg.append(el("svg:text", { x: X(x), y: H - 6, "text-anchor": "middle" }, String(x)));
  for (const line of lines) {
    const points = line.points.filter((p) => Number.isFinite(p[1]));
    const banded = points.filter((p) => Number.isFinite(p[2]));
    if (banded.length > 1) {
      const there = banded.map((p) => `${X(p[0])},${Y(p[3])}`), back = banded.map((p) => `${X(p[0])},${Y(p[2])}`).reverse();
      svg.append(el("svg:polygon", { points: [...there, ...back].join(" "), fill: line.colour, opacity: 0.16 }));
    }
    svg.append(el("svg:polyline", { points: thin(points).map((p) => `${X(p[0])},${Y(p[1])}`).join(" "), fill: "none", stroke: line.colour,
      "stroke-width": 1.8, "stroke-dasharray": STROKES[line.dashed]?.[0] }));
    for (const p of thin(points, 160)) {
      const dot = el("svg:circle", { class: "dot", cx: X(p[0]), cy: Y(p[1]), r: points.length > 60 ? 2.4 : 3.4, fill: line.colour, tabindex: -1 });
      const between = Number.isFinite(p[2]) ? ` (${number(p[2])} to ${number(p[3])})` : "";
      dot.append(el("svg:title", {}, `${line.name}\nupdate ${p[0]}: ${number(p[1])}${between}`));
      if (onpick) dot.addEventListener("click", () => onpick(line, p[0]));
      svg.append(dot);
    }
  }
  return svg;
}

// Of very many points the least and the greatest of each stretch, so that no spike is lost.
function thin(points, most = 800) {
  if (points.length <= most) return points;
  const size = Math.ceil(points.length / (most / 2)), kept = [];
  for (let i = 0; i < points.length; i += size) {
    const part = points.slice(i, i + size);
    const low = part.reduce((a, b) => (b[1] < a[1] ? b : a)), high = part.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low[0] <= high[0] ? [low, high] : [high, low]));
  }
  return kept;
}
