// The conversation: spans as buttons in their condition's colour, markers as what they are.

import {count, cut, el, plural, pressOnEnter} from "./dom.js";
import {css} from "./look.js";

const MARKERS = /(<image>|<p>|<\/p>|<region>|<SEG>)/;
const MOST_TEXT = 6000; // code points of a turn between two spans, before it is folded
const MOST_PHRASE = 400; // code points of a phrase that is not pinned
const MOST_TURNS = 60; // shown at once

/**
 * The turns of a sample.
 * @param {object} row @param {Map} colors of conditions @param {Map} tags of conditions
 * @param {object} on {condition(index) -> listeners, seg(ordinal) -> listeners}
 * @returns {{node: HTMLElement, spans: Map<number, HTMLElement>, segs: Map<number, HTMLElement>}} nodes of conditions,
 *   and of SEGs by their ordinal; those of later turns come when they are unfolded
 */
export function talk(row, colors, tags, on) {
  const spans = new Map(), segs = new Map();
  const hues = huesOfSegs(row.conditions, colors);
  const spansOf = row.turns.map(() => []);
  row.conditions.forEach((condition, number) => {
    if (condition.start >= 0) spansOf[condition.turn]?.push([condition, number]);
  });
  const state = {seg: 0};
  const make = {
    span: (condition, number, text) => {
      const node = phrase(condition, number, text, colors, tags, on);
      spans.set(number, node);
      return node;
    },
    seg: () => {
      const ordinal = state.seg++;
      const mark = el("button", {type: "button", class: "marker seg", "--hue": hues.get(ordinal), "data-seg": ordinal,
        "aria-pressed": "false", ...on.seg(ordinal)}, "SEG");
      segs.set(ordinal, mark);
      return mark;
    },
  };
  const node = el("div", {class: "talk"});
  const add = (from) => {
    const stop = Math.min(from + MOST_TURNS, row.turns.length);
    for (let index = from; index < stop; index++) node.append(turnNode(row.turns[index], spansOf[index], make));
    if (stop === row.turns.length) return;
    const more = el("button", {type: "button", class: "quiet", onclick: () => {
      more.remove();
      add(stop);
    }}, `… ${count(row.turns.length - stop)} more turns`);
    node.append(more);
  };
  add(0);
  const unplaced = row.conditions.map((condition, number) => [condition, number])
    .filter(([{turn}, number]) => !spans.has(number) && !(turn >= MOST_TURNS && turn < row.turns.length));
  if (unplaced.length) {
    node.append(el("div", {class: "turn unplaced"}, el("div", {class: "role"}, "not in the text"),
      el("div", {class: "text"}, unplaced.slice(0, 500).map(([condition, number]) =>
        [make.span(condition, number, condition.text), " "]))));
  }
  return {node, spans, segs};
}

function turnNode(turn, mine, make) {
  mine.sort(([a], [b]) => a.start - b.start);
  const points = mine.length ? Array.from(turn.text) : null;
  const parts = [];
  let from = 0;
  for (const [condition, number] of mine) {
    if (!(condition.start >= from && condition.end > condition.start && condition.end <= points.length)) continue;
    parts.push(...plain(points.slice(from, condition.start).join(""), make));
    parts.push(make.span(condition, number, points.slice(condition.start, condition.end).join("")));
    from = condition.end;
  }
  parts.push(...plain(points ? points.slice(from).join("") : turn.text, make));
  return el("div", {class: `turn ${turn.role === "user" ? "user" : "assistant"}`},
    el("div", {class: "role"}, cut(turn.role, 40)[0],
      turn.supervised && el("span", {class: "note", title: "a trainer computes its loss on this turn"}, "trained on")),
    el("div", {class: "text", dir: "auto"}, parts));
}

/** Ordinal of a SEG -> the colour of what it answers, where that is one condition. */
function huesOfSegs(conditions, colors) {
  const hues = new Map();
  conditions.forEach((condition, number) => {
    hues.set(condition.seg, hues.has(condition.seg) || !colors.has(number) ? null : css(colors.get(number)));
  });
  return hues;
}

/** A condition's span: a button that runs with the text, so no `button` element. */
function phrase(condition, number, text, colors, tags, on) {
  const color = colors.get(number);
  const isRegion = condition.kind === "region";
  const bare = text.replace(/^<p>/, "").replace(/<\/p>$/, "");
  const [shown, left] = cut(bare, MOST_PHRASE);
  const rest = left > 0 && bare.slice(shown.length);
  const objects = condition.objects.length;
  const isReachable = objects > 0 || isRegion;
  const found = objects ? `${count(objects)} object${plural(objects)}` : "nothing to be found";
  return el("span", {
    role: "button", tabindex: isReachable ? "0" : "-1",
    class: `span ${color ? "" : "absent"} ${isRegion ? "region" : ""}`,
    "--hue": color ? css(color) : null, "data-condition": number, "aria-pressed": "false",
    title: `${cut(condition.text, 200)[0]} — ${found}`,
    onkeydown: pressOnEnter,
    ...on.condition(number),
  }, tags.has(number) && el("span", {class: "rank"}, tags.get(number)),
  isRegion ? ["region", condition.text && el("span", {class: "means"}, cut(condition.text, 120)[0])] : shown || "…",
  !isRegion && rest && [el("span", {class: "more"}, ` … ${count(left)} more`), el("span", {class: "rest"}, rest)]);
}

function plain(text, make) {
  const parts = [];
  for (const piece of text.split(MARKERS)) {
    if (piece === "") continue;
    if (piece === "<SEG>") parts.push(make.seg());
    else if (MARKERS.test(piece)) parts.push(el("span", {class: "marker"}, piece.replace(/[<>]/g, "")));
    else parts.push(...folded(piece));
  }
  return parts;
}

/** Text of any length; what is more than a screen or two waits behind a button. */
function folded(text) {
  const [shown, left] = cut(text, MOST_TEXT);
  if (!left) return [text];
  const button = el("button", {type: "button", class: "quiet",
    onclick: () => button.replaceWith(text.slice(shown.length))},
    `… ${count(left)} more characters`);
  return [shown, button];
}
