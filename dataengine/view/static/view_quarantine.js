// Records that could not be built: why, what they are, and how to try again.

import {ask} from "./api.js";
import {copyButton, count, cut, el} from "./dom.js";

const PAGE = 50;

/**
 * @param {number} d of the dataset @param {object} filters {reason} @param {(filters: object) => void} onchange
 * @param {number} offset first record shown
 */
export async function quarantinePage(d, filters, onchange, offset = 0) {
  const found = await ask("/api/quarantine", {d, reason: filters.reason, offset, limit: PAGE});
  const node = el("section", {class: "quarantine"});
  const turn = async (to) => node.replaceWith(await quarantinePage(d, filters, onchange, to));
  const reasons = found.reasons.map(([reason, records]) => el("button", {type: "button", class: "toggle",
    "aria-pressed": String(filters.reason === reason), onclick: () => onchange(filters.reason === reason ? {} : {reason})},
  cut(reason, 60)[0], " ", el("b", {}, count(records))));
  node.append(
    el("h2", {}, found.total ? `${count(found.total)} records could not be built` : "Nothing is in quarantine"),
    found.reasons.length > 0 && el("div", {class: "reasons", role: "group", "aria-label": "reasons"}, reasons),
    found.reasons.length > 0 && el("div", {class: "command"}, el("span", {class: "faint"}, "When the sources are mended, try again:"),
      el("code", {}, found.replay), copyButton("Copy", () => found.replay)),
    el("ol", {class: "records", start: offset + 1}, found.rows.map(record)),
    pager(offset, found.rows.length, found.total, turn));
  return node;
}

function record(row) {
  const text = () => row.payload + (row.left ? `\n… ${count(row.left)} more characters` : "");
  const box = el("pre", {tabindex: "0"});
  const payload = el("details", {ontoggle: () => payload.open && !box.textContent && (box.textContent = pretty(text()))},
    el("summary", {}, "The record"), copyButton("Copy", () => row.payload), box);
  return el("li", {},
    el("div", {}, el("b", {class: "reason"}, cut(row.reason, 80)[0]), " ", el("span", {class: "id"}, cut(`${row.file}: ${row.record}`, 200)[0])),
    el("p", {}, cut(row.message, 600)[0]),
    el("p", {class: "faint"}, cut(`${row.source}/${row.split} · ${row.unit} · ${row.group}`, 200)[0]),
    row.payload ? payload : el("p", {class: "faint"}, "Its content was not kept."));
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;
  }
}

/** Which of how many are shown, and buttons to turn the page. */
export function pager(offset, shown, total, turn) {
  return el("nav", {class: "pager", "aria-label": "pages"},
    el("button", {type: "button", class: "quiet", disabled: offset <= 0, onclick: () => turn(Math.max(0, offset - PAGE))}, "← page"),
    el("span", {}, total ? `${count(offset + 1)}–${count(offset + shown)} of ${count(total)}` : "none"),
    el("button", {type: "button", class: "quiet", disabled: offset + shown >= total, onclick: () => turn(offset + PAGE)}, "page →"));
}
