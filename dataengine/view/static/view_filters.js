// Filters, and the order of samples.

import {CHOICES, RANGES} from "./api.js";
import {count, cut, el} from "./dom.js";

const TITLES = {
  task: "Task", variant: "Variant", source: "Source", split: "Split", category: "Category", kind: "Prompts",
  origin: "Masks by",
  round: "Round", labeler: "Labeler", license: "Licence", change: "Change between the two",
};
const RANGE_TITLES = {
  objects: ["Objects", "1"], area: ["Mask area, px", "1"], inside: ["Prompt inside, 0 to 1", "0.01"],
  other: ["Prompt in another, 0 to 1", "0.01"], score: ["Score", "0.01"], stability: ["Stability", "0.01"],
};
const ORDERS = {
  number: "dataset order", objects: "objects", conditions: "conditions", words: "words", area: "largest mask",
  smallest: "smallest mask", inside: "prompt inside", other: "prompt in another", score: "score",
  stability: "stability",
  change: "mask IoU between the two",
};
const CHANGES = ["changed", "added", "removed", "same"];
const MOST_BOXES = 12;
const UNSEEN = ["sort", "desc", "q", "reason", "from"]; // of an address: not among the filters of samples

/**
 * @param {object} dataset of /api/datasets @param {boolean} isPair whether two datasets are open
 * @param {object} filters @param {(filters: object) => void} onchange
 */
export function filterPanel(dataset, isPair, filters, onchange) {
  const set = (changes) => onchange({...filters, ...changes});
  const facets = {...dataset.facets, ...(isPair ? {change: CHANGES.map((change) => [change, null])} : {})};
  const groups = CHOICES.filter((name) => (facets[name] ?? []).length > 1 || filters[name]?.length)
    .map((name) => choices(name, facets[name] ?? [], filters[name] ?? [], (chosen) => set({[name]: chosen})));
  const hasScores = (facets.origin ?? []).some(([origin]) => origin !== "human");
  const hasPrompts = (facets.kind ?? []).length > 0;
  const isThere = {score: hasScores, stability: hasScores, inside: hasPrompts, other: hasPrompts};
  const ranges = RANGES.filter((name) => (isThere[name] ?? true) || filters[name])
    .map((name) => range(name, filters[name] ?? "", (value) => set({[name]: value})));
  const ambiguous = el("label", {class: "choice"}, el("input", {type: "checkbox", checked: filters.ambiguous === "1",
    onchange: (event) => set({ambiguous: event.target.checked ? "1" : null})}), "prompt lies more in another object");
  const active = Object.keys(filters).filter((name) => !UNSEEN.includes(name)).length;
  return el("details", {class: "filters", open: matchMedia("(min-width: 1000px)").matches},
    el("summary", {}, "Filters", active > 0 && el("b", {class: "many"}, active)),
    active > 0 && el("button", {type: "button", class: "quiet clear", onclick: () => onchange(kept(filters))},
      "Clear filters"),
    groups, ranges, hasPrompts && el("fieldset", {}, el("legend", {}, "Ambiguous"), ambiguous));
}

function kept(filters) {
  return Object.fromEntries(Object.entries(filters).filter(([name]) => UNSEEN.includes(name)));
}

function choices(name, values, chosen, onchange) {
  const toggle = (value, on) => onchange(on ? [...chosen, value] : chosen.filter((other) => other !== value));
  const known = new Map(values.map(([value, rows]) => [String(value), rows]));
  for (const value of chosen) if (!known.has(value)) known.set(value, null);
  const all = [...known];
  const most = all.length > MOST_BOXES ? MOST_BOXES - 4 : MOST_BOXES;
  const shown = all.filter(([value], at) => at < most || chosen.includes(value));
  const boxes = shown.map(([value, rows]) => el("label", {class: "choice"},
    el("input", {type: "checkbox", value, checked: chosen.includes(value),
      onchange: (event) => toggle(value, event.target.checked)}),
    el("span", {class: "name", title: cut(value, 200)[0], dir: "auto"}, cut(value, 60)[0] || "none"),
    rows !== null && el("span", {class: "faint"}, count(rows))));
  const left = all.length - shown.length;
  return el("fieldset", {"data-filter": name}, el("legend", {}, TITLES[name]), boxes,
    left > 0 && finder(name, all, chosen, onchange, left));
}

/** A box to type one of many values in. */
function finder(name, all, chosen, onchange, left) {
  const id = `all-${name}`;
  const input = el("input", {type: "text", list: id, placeholder: `${count(left)} more: type a name`,
    "aria-label": TITLES[name],
    onchange: () => {
      const value = input.value.trim();
      if (all.some(([other]) => other === value) && !chosen.includes(value)) onchange([...chosen, value]);
    }});
  return [input, el("datalist", {id}, all.slice(0, 2000).map(([value]) => el("option", {value})))];
}

function range(name, value, onchange) {
  const [title, step] = RANGE_TITLES[name];
  const [low, high] = value.split("..");
  const box = (which, now) => el("input", {type: "number", step, min: "0", value: now ?? "", placeholder: which,
    "aria-label": `${title}, ${which}`,
    onchange: () => onchange(ends.some((end) => end.value !== "") ? ends.map((end) => end.value).join("..") : null)});
  const ends = [box("least", low), box("most", high)];
  return el("fieldset", {"data-filter": name}, el("legend", {}, title),
    el("span", {class: "range"}, ends[0], "to", ends[1]));
}

/** By what samples are sorted. */
export function orderBox(dataset, isPair, filters, onchange) {
  const hasScores = (dataset.facets.origin ?? []).some(([origin]) => origin !== "human");
  const hasPrompts = (dataset.facets.kind ?? []).length > 0;
  const isThere = {change: isPair, score: hasScores, stability: hasScores, inside: hasPrompts, other: hasPrompts};
  const keys = Object.keys(ORDERS).filter((key) => (isThere[key] ?? true) || filters.sort === key);
  const select = el("select", {"aria-label": "order",
    onchange: () => onchange({...filters, desc: "", sort: select.value === "number" ? "" : select.value})},
    keys.map((key) => el("option", {value: key, selected: (filters.sort ?? "number") === key}, ORDERS[key])));
  const turn = el("button", {type: "button", class: "quiet", title: "turn the order round",
    onclick: () => onchange({...filters, desc: filters.desc ? null : "1"})},
  filters.desc ? "↓ largest first" : "↑ smallest first");
  return el("div", {class: "order"}, "by ", select, filters.sort && turn);
}
