// Small tools: elements, text of models made harmless to read, numbers, colours.
// Nothing of a response ever becomes markup: text enters the page by textContent alone.
"use strict";

function el(tag, attributes, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Control characters, and those that turn the direction of what follows: they are shown as what they are.
const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/u;
function shown(text) {
  const parts = [];
  let plain = "";
  for (const letter of String(text)) {
    if (!ODD.test(letter)) { plain += letter; continue; }
    if (plain) parts.push(plain);
    plain = "";
    parts.push(el("span", { class: "odd" }, `‹U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`));
  }
  return plain ? [...parts, plain] : parts;
}

function number(x, digits = 3) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  if (Number.isInteger(x)) return String(x);
  const size = Math.abs(x);
  return size >= 1000 ? x.toFixed(0) : size >= 0.001 ? String(+x.toPrecision(digits)) : x.toExponential(1);
}

const RUN_COLOURS = ["#2f6fde", "#d9730d", "#2a9d5c", "#b23fb0", "#c2a100", "#0aa3a3", "#d6336c", "#6b7785"];

// -1..1 as one of 33 shades: tokens of one shade stand in one element.
function shade(share) { return Math.round(Math.max(-1, Math.min(1, share)) * 16); }
function colour(level) {
  return level === 0 ? "" : `background: rgba(var(${level > 0 ? "--up" : "--down"}), ${(0.16 + 0.5 * Math.abs(level) / 16).toFixed(3)})`;
}

const tip = () => document.getElementById("tip");
function tipped(node, fill) {
  const open = (event) => {
    const box = tip();
    box.replaceChildren(...[fill()].flat(9));
    box.hidden = false;
    const at = node.getBoundingClientRect();
    box.style.left = `${Math.max(4, Math.min(at.left, innerWidth - box.offsetWidth - 8))}px`;
    const below = at.bottom + 4;
    box.style.top = `${Math.max(4, below + box.offsetHeight > innerHeight ? at.top - box.offsetHeight - 4 : below)}px`;
    event.stopPropagation();
  };
  node.addEventListener("mouseenter", open);
  node.addEventListener("focus", open);
  node.addEventListener("mouseleave", () => { tip().hidden = true; });
  node.addEventListener("blur", () => { tip().hidden = true; });
  return node;
}
