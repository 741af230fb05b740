// A picture with its masks on a canvas and its prompts above them.

import {el, svg} from "./dom.js";
import {decodeRuns, grid, middle, paintRuns} from "./rle.js";
import {UNASKED, css} from "./look.js";

const TINT = 0.45, FAINT = 0.16, STRONG = 0.62; // of masks over the picture
const STRIPE = 12, HATCH = 9; // px
const MOST_SIDE = 1600; // rendered px
const SPECK = 8; // shown px: smaller things get a ring
const MOST_LABELS = 80;

/**
 * @typedef {object} Thing something with a mask
 * @property {string} rle @property {number} area px @property {number[][]} colors empty: nobody asks for it
 * @property {boolean} hatched a crowd, or ignored pixels @property {boolean} dashed a model's mask
 * @property {string} label a short text drawn on it, or "" @property {object[]} prompts as in the row
 */

export class Stage {
  /**
   * @param {object} view {width, height, url, error, things: Thing[], name}
   * @param {(thing: number) => void} onhover index of the thing under the pointer, or -1
   */
  constructor(view, onhover = () => {}, onpick = () => {}) {
    this.view = view;
    this.shown = {masks: true, prompts: new Set(["point", "scribble", "box", "mask"]), things: null, tint: 1};
    this.lit = new Set();
    this.errors = [];
    this.runs = view.things.map((thing) => this.#runsOf(thing.rle));
    this.order = view.things.map((_, index) => index).sort((a, b) => view.things[b].area - view.things[a].area);
    this.canvas = el("canvas", {class: "masks", "aria-hidden": "true"});
    this.marks = svg("svg", {
      class: "marks", viewBox: `0 0 ${view.width} ${view.height}`, preserveAspectRatio: "none", "aria-hidden": "true",
    });
    this.node = el("div", {class: "stage", role: "img", "aria-label": view.name, "--ratio": `${view.width} / ${view.height}`,
      "--shape": view.width / view.height},
      view.url
        ? el("img", {src: view.url, alt: "", decoding: "async", draggable: "false",
          onerror: (event) => event.target.replaceWith(missing("the picture cannot be shown"))})
        : missing(view.error ?? "no picture"),
      this.canvas, this.marks);
    this.node.addEventListener("pointermove", (event) => this.#hover(event, onhover));
    this.node.addEventListener("pointerleave", () => onhover(-1));
    this.node.addEventListener("click", (event) => onpick(this.#at(event)));
    new ResizeObserver(() => this.#resize()).observe(this.node);
  }

  /** Light some things, dim the others; an empty set lights none. */
  light(things) {
    this.lit = new Set(things);
    this.#draw();
  }

  /** What is shown: {masks, prompts: Set of kinds, things: Set of indices or null for all, tint}. */
  show(changes) {
    Object.assign(this.shown, changes);
    this.#draw();
  }

  #runsOf(rle) {
    try {
      return decodeRuns(rle ?? "", this.view.height, this.view.width);
    } catch (error) {
      this.errors.push(error.message);
      return new Int32Array();
    }
  }

  #resize() {
    const wide = this.node.clientWidth, high = this.node.clientHeight;
    if (!wide || !high) return;
    const sharp = Math.min(window.devicePixelRatio || 1, MOST_SIDE / Math.max(wide, high));
    const columns = Math.max(1, Math.round(wide * sharp)), rows = Math.max(1, Math.round(high * sharp));
    if (this.canvas.width === columns && this.canvas.height === rows && this.owner) return;
    this.canvas.width = columns;
    this.canvas.height = rows;
    this.scale = wide / this.view.width;
    this.xs = grid(this.view.width, columns);
    this.ys = grid(this.view.height, rows);
    this.owner = new Uint16Array(columns * rows);
    this.under = new Uint16Array(columns * rows);
    this.hatch = new Uint16Array(columns * rows);
    this.#draw();
  }

  #isShown(index) {
    return this.shown.things === null || this.shown.things.has(index) || this.view.things[index].hatched;
  }

  #paint(owner, index, value) {
    paintRuns(owner, this.runs[index], this.view.height, this.xs, this.ys, this.canvas.height, value);
  }

  #draw() {
    if (!this.owner) return;
    const began = performance.now();
    this.under.fill(0);
    for (const index of this.order) if (this.#isShown(index)) this.#paint(this.under, index, index + 1);
    this.owner.set(this.under);
    for (const index of this.order) if (this.lit.has(index) && this.#isShown(index)) this.#paint(this.owner, index, index + 1);
    this.#color();
    this.#mark();
    this.node.dataset.drawMs = (performance.now() - began).toFixed(1);
  }

  /** Turn owners into colours: a tint, a line where the owner ends. */
  #color() {
    const {width: columns, height: rows} = this.canvas;
    const context = this.canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    if (this.shown.masks || this.lit.size) {
      const out = new Uint32Array(image.data.buffer);
      const looks = [null, ...this.view.things.map((thing, index) => this.#look(thing, index))];
      const owner = this.owner;
      for (let x = 0, at = 0; x < columns; x++) {
        for (let y = 0; y < rows; y++, at++) {
          const mine = owner[at];
          if (mine === 0 || looks[mine] === null) continue;
          const look = looks[mine];
          const edge = y < 2 || y >= rows - 2 || x < 2 || x >= columns - 2 || owner[at - 2] !== mine ||
            owner[at + 2] !== mine || owner[at - 2 * rows] !== mine || owner[at + 2 * rows] !== mine;
          if (edge) out[y * columns + x] = look.dashed && ((x + y) >> 2) & 1 ? 0xffffffff : look.line;
          else if (look.hatched) out[y * columns + x] = (x + y) % HATCH < 2 ? look.line : look.tints[0];
          else out[y * columns + x] = look.tints[look.tints.length > 1 ? Math.floor((x + y) / STRIPE) % look.tints.length : 0];
        }
      }
    }
    context.putImageData(image, 0, 0);
  }

  #look(thing, index) {
    const isLit = this.lit.has(index);
    if (!this.shown.masks && !isLit) return null;
    const share = (this.lit.size ? (isLit ? STRONG : FAINT) : thing.colors.length ? TINT : FAINT) * this.shown.tint;
    const colors = thing.colors.length ? thing.colors : [UNASKED];
    return {
      tints: colors.map((color) => pixel(color, share)),
      line: pixel(colors[0], this.lit.size && !isLit ? 0.4 : 1),
      hatched: thing.hatched,
      dashed: thing.dashed,
    };
  }

  /** Prompts, labels, and rings about what is too small to be seen. */
  #mark() {
    const nodes = [];
    this.view.things.forEach((thing, index) => {
      if (!this.#isShown(index)) return;
      const color = css(thing.colors[0] ?? UNASKED);
      const dim = this.lit.size && !this.lit.has(index);
      const group = svg("g", {class: dim ? "dim" : null, "--hue": color});
      for (const prompt of thing.prompts) {
        if (this.shown.prompts.has(prompt.kind) && prompt.status !== "none") group.append(...this.#prompt(prompt));
      }
      if (this.shown.masks || this.lit.has(index)) group.append(...this.#speck(thing, index), ...this.#label(thing, index));
      if (group.childNodes.length) nodes.push(group);
    });
    this.marks.replaceChildren(...nodes);
  }

  #speck(thing, index) {
    const [x, y, width, height] = thing.bbox ?? [0, 0, 0, 0];
    if (!this.runs[index].length || Math.max(width, height) * this.scale > SPECK) return [];
    return [svg("circle", {class: "speck", cx: x + width / 2, cy: y + height / 2, r: SPECK / this.scale})];
  }

  #label(thing, index) {
    if (!thing.label || !this.runs[index].length || this.view.things.length > MOST_LABELS) return [];
    const [x, y] = middle(this.runs[index], this.view.height);
    return [svg("text", {class: "tag", x, y, "font-size": 13 / this.scale, "stroke-width": 3.5 / this.scale}, thing.label)];
  }

  /** A prompt as what it is: discs of its radius, strokes, boxes, or a mask's outline. */
  #prompt(prompt) {
    const places = [];
    for (let at = 0; at + 1 < prompt.points.length; at += 2) places.push([prompt.points[at], prompt.points[at + 1]]);
    const lines = [];
    let from = 0;
    for (const length of prompt.parts.length ? prompt.parts : [places.length]) {
      lines.push(places.slice(from, from + length));
      from += length;
    }
    const radius = Math.max(prompt.radius, 0.5);
    const kinds = {
      point: () => places.slice(0, 500).flatMap(([cx, cy]) => [
        svg("circle", {class: "reach", cx, cy, r: radius}),
        svg("circle", {class: "dot", cx, cy, r: 4 / this.scale}),
      ]),
      scribble: () => lines.slice(0, 500).flatMap((line) => {
        const points = (line.length === 1 ? [line[0], line[0]] : line).map((place) => place.join(",")).join(" ");
        return [
          svg("polyline", {class: "band", points, "stroke-width": Math.max(2 * radius, 5 / this.scale)}),
          svg("polyline", {class: "core", points}),
        ];
      }),
      box: () => places.slice(0, 1000).filter((_, at) => at % 2 === 0 && at + 1 < places.length).flatMap(([x, y], at) => {
        const [right, bottom] = places[2 * at + 1];
        const box = {x, y, width: Math.max(right - x, 0), height: Math.max(bottom - y, 0)};
        return [svg("rect", {class: "shade", ...box}), svg("rect", {class: "frame", ...box})];
      }),
      mask: () => this.#outline(prompt),
    };
    return kinds[prompt.kind] ? kinds[prompt.kind]() : [];
  }

  /** A mask prompt's edge, as one path along pixel borders. */
  #outline(prompt) {
    let runs;
    try {
      runs = decodeRuns(prompt.rle ?? "", this.view.height, this.view.width);
    } catch {
      return [];
    }
    const d = borderPath(runs, this.view.height);
    return [svg("path", {class: "shade", d}), svg("path", {class: "frame dashed", d})];
  }

  #at(event) {
    if (!this.owner) return -1;
    const box = this.canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * this.canvas.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * this.canvas.height);
    if (x < 0 || y < 0 || x >= this.canvas.width || y >= this.canvas.height) return -1;
    return this.under[x * this.canvas.height + y] - 1;
  }

  #hover(event, onhover) {
    const found = this.#at(event);
    if (found !== this.hovered) onhover((this.hovered = found));
  }
}

function missing(why) {
  return el("div", {class: "missing"}, el("span", {}, why));
}

/** A little-endian RGBA pixel. */
function pixel([red, green, blue], share) {
  return ((Math.round(255 * Math.min(share, 1)) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

/** SVG path along the borders of a mask's pixels: verticals between columns, horizontals at the ends of runs. */
export function borderPath(runs, height) {
  const parts = [];
  const columns = new Map(); // column -> [top, bottom, …]
  for (let run = 0; run < runs.length; run += 2) {
    for (let from = runs[run]; from < runs[run + 1];) {
      const column = Math.floor(from / height), stop = Math.min(runs[run + 1], (column + 1) * height);
      if (!columns.has(column)) columns.set(column, []);
      columns.get(column).push(from - column * height, stop - column * height);
      from = stop;
    }
  }
  for (const [column, ends] of columns) {
    for (const y of ends) parts.push(`M${column} ${y}h1`);
    for (const [near, x] of [[columns.get(column - 1) ?? [], column], [columns.get(column + 1) ?? [], column + 1]]) {
      const all = [...new Set([...ends, ...near])].sort((a, b) => a - b);
      for (let at = 0; at + 1 < all.length; at++) {
        const place = (all[at] + all[at + 1]) / 2;
        if (covers(ends, place) && !covers(near, place)) parts.push(`M${x} ${all[at]}V${all[at + 1]}`);
      }
    }
  }
  return parts.join("");
}

function covers(ends, place) {
  for (let at = 0; at < ends.length; at += 2) if (ends[at] <= place && place < ends[at + 1]) return true;
  return false;
}
