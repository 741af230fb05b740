// Records that could not be built: why, what they are, and how to try again.

import {ask} from "./api.js";
import {copyButton, count, cut, el, plural, said} from "./dom.js";

const PAGE = 50;

/**
 * @param {number} d of the dataset @param {object} filters {reason, source, from: number of the first record shown}
 * @param {(filters: object) => void} onchange @param {AbortSignal} signal ends its question
 */
export async function quarantinePage(d, filters, onchange, signal) {
  const offset = Number.parseInt(filters.from ?? "0", 10) || 0;
  const {reason, source} = filters;
  const found = await ask("/api/quarantine", {d, reason, source, offset, limit: PAGE}, signal);
  const change = (changes) => onchange({...filters, from: "", ...changes});
  const isAny = found.reasons.length > 0;
  return el("section", {class: "quarantine"},
    el("h2", {}, titleOf(found.total, isAny || source?.length > 0)),
    isAny && choices("reasons", found.reasons, reason ? [reason] : [], (values) => change({reason: values.at(-1)})),
    (found.sources.length > 1 || source?.length > 0) &&
      choices("sources", found.sources, source ?? [], (values) => change({source: values})),
    isAny && el("div", {class: "command"}, el("span", {class: "faint"}, "When the sources are mended, try again:"),
      el("code", {}, found.replay), copyButton("Copy", () => found.replay)),
    el("ol", {class: "records", start: offset + 1}, found.rows.map(record)),
    found.total > PAGE && pager(offset, PAGE, found.total, (from) =>
      onchange({...filters, from: from ? String(from) : ""})));
}

function titleOf(total, isFiltered) {
  if (total) return `${count(total)} record${plural(total)} could not be built`;
  return isFiltered ? "No record is like that" : "Nothing is in quarantine";
}

/** Toggles of values and how many records each has. */
function choices(label, values, chosen, onchange) {
  const gone = chosen.filter((value) => !values.some(([other]) => other === value));
  const known = [...values, ...gone.map((value) => [value, 0])];
  return el("div", {class: "reasons", role: "group", "aria-label": label}, known.map(([value, records]) => {
    const isOn = chosen.includes(value);
    const others = chosen.filter((other) => other !== value);
    return el("button", {type: "button", class: "toggle", "aria-pressed": String(isOn), title: cut(value, 200)[0],
      onclick: () => onchange(isOn ? others : [...others, value])}, cut(value, 60)[0], " ",
    el("b", {}, count(records)));
  }));
}

function record(row) {
  const text = () => row.payload + (row.left ? `\n… ${count(row.left)} more characters` : "");
  const box = el("pre", {tabindex: "0"});
  const payload = el("details", {ontoggle: () => {
    if (payload.open && !box.textContent) box.textContent = pretty(text());
  }},
  el("summary", {}, "The record"), copyButton("Copy", () => row.payload), box);
  return el("li", {},
    el("div", {}, el("b", {class: "reason"}, cut(row.reason, 80)[0]), " ",
      el("span", {class: "id"}, said(`${row.file}: ${row.record}`, 200))),
    el("p", {}, said(row.message, 600)),
    el("p", {class: "faint"}, said(`${row.source}/${row.split} · ${row.unit} · ${row.group}`, 200)),
    row.payload ? payload : el("p", {class: "faint"}, "Its content was not kept."));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;
  }
}

/** Which of `total` are shown, `most` at once from `offset` on, and buttons to turn the page. */
export function pager(offset, most, total, turn) {
  const stop = Math.min(offset + most, total);
  const button = (text, to, isThere) => el("button", {type: "button", class: "quiet", disabled: !isThere,
    onclick: () => turn(to)}, text);
  return el("nav", {class: "pager", "aria-label": "pages"},
    button("← page", Math.max(0, offset - most), offset > 0),
    el("span", {}, offset < total ? `${count(offset + 1)}–${count(stop)} of ${count(total)}` : "none"),
    button("page →", offset + most, stop < total));
}
