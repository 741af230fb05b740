// The conversation: spans as buttons in their condition's colour, markers as what they are.

import {cut, el} from "./dom.js";
import {css} from "./look.js";

const MARKERS = /(<image>|<p>|<\/p>|<region>|<SEG>)/;
const MOST_TEXT = 6000; // code points of a turn between two spans, before it is folded

/**
 * The turns of a sample.
 * @param {object} row @param {Map} colors of conditions @param {Map} tags of conditions
 * @param {object} on {condition(index) -> listeners, seg(ordinal) -> listeners}
 * @returns {{node: HTMLElement, spans: Map<number, HTMLElement>, segs: Map<number, HTMLElement>}}
 */
export function talk(row, colors, tags, on) {
  const spans = new Map(), segs = new Map();
  const state = {seg: 0};
  const turns = row.turns.map((turn, index) => {
    const mine = row.conditions.map((condition, number) => [condition, number])
      .filter(([condition]) => condition.turn === index && condition.start >= 0)
      .sort(([a], [b]) => a.start - b.start);
    const points = mine.length ? Array.from(turn.text) : null;
    const parts = [];
    let from = 0;
    for (const [condition, number] of mine) {
      if (condition.start < from || condition.end > points.length) continue;
      parts.push(...plain(points.slice(from, condition.start).join(""), state, segs, on));
      const span = phrase(condition, number, points.slice(condition.start, condition.end).join(""), colors, tags, on);
      spans.set(number, span);
      parts.push(span);
      from = condition.end;
    }
    parts.push(...plain(points ? points.slice(from).join("") : turn.text, state, segs, on));
    const isUser = turn.role === "user";
    return el("div", {class: `turn ${isUser ? "user" : "assistant"}`},
      el("div", {class: "role"}, turn.role,
        turn.supervised && el("span", {class: "note", title: "a trainer computes its loss on this turn"}, "trained on")),
      el("div", {class: "text", dir: "auto"}, parts));
  });
  return {node: el("div", {class: "talk"}, turns), spans, segs};
}

function phrase(condition, number, text, colors, tags, on) {
  const color = colors.get(number);
  const inner = text.replace(/^<p>/, "").replace(/<\/p>$/, "");
  const [shown, left] = cut(inner, 400);
  const what = condition.kind === "region" ? `region: ${condition.text}` : condition.text;
  return el("button", {
    type: "button", class: `span ${color ? "" : "absent"} ${condition.kind}`, "--hue": color ? css(color) : null,
    "data-condition": number, "aria-pressed": "false",
    title: `${what} — ${condition.objects.length} object${condition.objects.length === 1 ? "" : "s"}`,
    ...on.condition(number),
  }, tags.has(number) && el("sup", {}, tags.get(number)),
  condition.kind === "region" ? ["region", condition.text && el("span", {class: "means"}, condition.text)] : shown,
  left > 0 && ` … ${left} more`);
}

function plain(text, state, segs, on) {
  const parts = [];
  for (const piece of text.split(MARKERS)) {
    if (piece === "") continue;
    if (piece === "<SEG>") {
      const ordinal = state.seg++;
      const mark = el("button", {type: "button", class: "marker seg", "data-seg": ordinal, ...on.seg(ordinal)}, "SEG");
      segs.set(ordinal, mark);
      parts.push(mark);
    } else if (MARKERS.test(piece)) {
      parts.push(el("span", {class: "marker"}, piece.replace(/[<>]/g, "")));
    } else parts.push(...folded(piece));
  }
  return parts;
}

/** Text of any length; what is more than a screen or two waits behind a button. */
function folded(text) {
  const [shown, left] = cut(text, MOST_TEXT);
  if (!left) return [text];
  const rest = text.slice(shown.length);
  const button = el("button", {type: "button", class: "quiet", onclick: () => button.replaceWith(rest)},
    `… ${left.toLocaleString("en-US")} more characters`);
  return [shown, button];
}
