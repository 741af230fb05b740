// A picture with its masks on a canvas and its prompts above them.

import {el, svg} from "./dom.js";
import {boundsOf, decodeRuns, grid, middle, outlinePath, paintRuns} from "./rle.js";
import {UNASKED, css} from "./look.js";

const TINT = 0.45, FAINT = 0.16, STRONG = 0.62; // of masks over the picture
const STRIPE = 12, HATCH = 9; // px
const MOST_SIDE = 1600; // rendered px
const SPECK = 8; // shown px: smaller things get a ring
const MOST_LABELS = 80, MOST_SPECKS = 500, MOST_POINTS = 20_000, MOST_LINES = 1000;
const LONGEST = 12; // a picture's longer side to its shorter; thinner ones are stretched to be seen
const PIXELATED = 160; // px: pictures no larger show their pixels
const AHEAD = "800px"; // how far from the screen stages are drawn already

const stages = new WeakMap();
const nearby = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) stages.get(target)?.wake(isIntersecting);
}, {rootMargin: AHEAD});

/** Draw all stages in a node at once, far from the screen as they may be, until `rest` is called: for paper. */
export function drawAll(node) {
  const mine = [...node.querySelectorAll(".stage")];
  for (const stage of mine) stages.get(stage)?.print();
  return function rest() {
    for (const stage of mine) nearby.observe(stage);
  };
}

/**
 * @typedef {object} Thing something with a mask
 * @property {string} rle @property {number} area px @property {number[][]} colors empty: nobody asks for it
 * @property {boolean} hatched a crowd, or ignored pixels, which are crossed @property {boolean} dashed a model's mask
 * @property {string} label a short text drawn on it, or "" @property {object[]} prompts as in the row
 */

/** Drawn when it comes near the screen, and forgotten when it is far away again. */
export class Stage {
  /**
   * @param {object} view {width, height, url, error, things: Thing[], name, prompts: kinds shown at first}
   * @param {object} on {hover(thing), pick(thing): index of the thing under the pointer, or -1; trouble(messages)}
   */
  constructor(view, on = {}) {
    this.view = view;
    this.on = on;
    this.shown = {masks: true, prompts: new Set(view.prompts), things: null, tint: 1};
    this.lit = new Set();
    this.hovered = -1;
    const low = (thing) => (thing.hatched ? Infinity : Number(thing.area) || 0);
    this.order = view.things.map((_, index) => index)
      .sort((a, b) => low(view.things[b]) - low(view.things[a]) || a - b);
    this.canvas = el("canvas", {class: "masks", width: 0, height: 0, "aria-hidden": "true"});
    this.marks = svg("svg", {
      class: "marks", viewBox: `0 0 ${view.width} ${view.height}`, preserveAspectRatio: "none", "aria-hidden": "true",
    });
    const shape = Math.min(Math.max(view.width / view.height, 1 / LONGEST), LONGEST);
    const isTiny = Math.max(view.width, view.height) <= PIXELATED;
    this.node = el("div", {class: `stage ${isTiny ? "tiny" : ""}`, role: "img", "aria-label": view.name,
      "--shape": shape},
      view.url
        ? el("img", {src: view.url, alt: "", loading: "lazy", decoding: "async", draggable: "false",
          onerror: async (event) => event.target.replaceWith(missing(await reason(view.url)))})
        : missing(view.error ?? "no picture"),
      this.canvas, this.marks);
    this.node.addEventListener("pointermove", (event) => event.pointerType !== "touch" && this.#hover(this.#at(event)));
    this.node.addEventListener("pointerleave", () => this.#hover(-1));
    this.node.addEventListener("click", (event) => on.pick?.(this.#at(event)));
    this.resized = new ResizeObserver(() => this.#resize());
    stages.set(this.node, this);
    nearby.observe(this.node);
  }

  /** Light some things, dim the others; an empty set lights none. color: of what is lit, in place of its own. */
  light(things, color = null) {
    this.lit = new Set(things);
    this.litColor = color;
    this.#draw();
  }

  /** What is shown: {masks, prompts: Set of kinds, things: Set of indices or null for all, tint}. */
  show(changes) {
    Object.assign(this.shown, changes);
    this.under = null;
    this.#draw();
  }

  /** Near the screen it holds decoded masks and pixels, else neither. */
  wake(isNear) {
    if (isNear === this.isAwake) return;
    this.isAwake = isNear;
    if (isNear) {
      const began = performance.now();
      const errors = new Map();
      this.runs = this.view.things.map((thing, index) => this.#runsOf(thing.rle, index, errors));
      this.node.dataset.decodeMs = (performance.now() - began).toFixed(1);
      if (errors.size) this.on.trouble?.(errors);
      this.resized.observe(this.node);
    } else {
      this.resized.disconnect();
      this.runs = this.owner = this.under = null;
      this.canvas.width = this.canvas.height = 0;
      this.marks.replaceChildren();
      delete this.node.dataset.drawMs;
    }
  }

  print() {
    nearby.unobserve(this.node); // which would let it sleep
    this.node.querySelector("img")?.setAttribute("loading", "eager");
    this.wake(true);
    this.#resize();
  }

  #runsOf(rle, index, errors) {
    try {
      return decodeRuns(rle ?? "", this.view.height, this.view.width);
    } catch (error) {
      errors.set(index, error.message);
      return new Int32Array();
    }
  }

  #resize() {
    const wide = this.node.clientWidth, high = this.node.clientHeight;
    if (!wide || !high || !this.runs) return;
    const sharp = Math.min(window.devicePixelRatio || 1, MOST_SIDE / Math.max(wide, high));
    const columns = Math.max(1, Math.round(wide * sharp)), rows = Math.max(1, Math.round(high * sharp));
    if (this.owner && this.canvas.width === columns && this.canvas.height === rows) return;
    this.canvas.width = columns;
    this.canvas.height = rows;
    this.scale = wide / this.view.width;
    this.line = Math.max(1, Math.round(1.6 * sharp));
    if (this.runs.some((runs) => runs.length)) {
      this.xs = grid(this.view.width, columns);
      this.ys = grid(this.view.height, rows);
    }
    this.owner = new Uint16Array(columns * rows);
    this.under = null;
    this.groups = null;
    this.#draw();
  }

  #isShown(index) {
    return this.shown.things === null || this.shown.things.has(index) || this.view.things[index].hatched;
  }

  /** A mask thinner than the rendered pixels is drawn one of them wide, not lost between them. */
  #paint(owner, index) {
    const runs = this.runs[index];
    if (!runs.length) return;
    const {width, height} = this.view, {width: columns, height: rows} = this.canvas;
    let area = 0;
    for (let run = 0; run < runs.length; run += 2) area += runs[run + 1] - runs[run];
    const expected = area * (columns / width) * (rows / height);
    const painted = paintRuns(owner, runs, height, this.xs, this.ys, rows, index + 1);
    if (2 * painted < expected || !painted) paintRuns(owner, runs, height, this.xs, this.ys, rows, index + 1, true);
  }

  #draw() {
    if (!this.owner) return;
    const began = performance.now();
    if (!this.under) {
      this.under = new Uint16Array(this.owner.length);
      for (const index of this.order) if (this.#isShown(index)) this.#paint(this.under, index);
    }
    this.owner.set(this.under);
    for (const index of this.order) if (this.lit.has(index) && this.#isShown(index)) this.#paint(this.owner, index);
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
      const owner = this.owner, line = this.line, aside = line * rows;
      for (let x = 0, at = 0; x < columns; x++) {
        for (let y = 0; y < rows; y++, at++) {
          const mine = owner[at];
          if (mine === 0 || looks[mine] === null) continue;
          const look = looks[mine];
          const edge = y < line || y >= rows - line || x < line || x >= columns - line || owner[at - line] !== mine ||
            owner[at + line] !== mine || owner[at - aside] !== mine || owner[at + aside] !== mine;
          if (edge) out[y * columns + x] = look.dashed && ((x + y) >> 2) & 1 ? 0xffffffff : look.line;
          else if (look.hatched) {
            const isLine = (x + y) % HATCH < 2 || (look.crossed && (x + rows - y) % HATCH < 2);
            out[y * columns + x] = isLine ? look.line : look.tints[0];
          } else {
            const stripe = look.tints.length > 1 ? Math.floor((x + y) / STRIPE) % look.tints.length : 0;
            out[y * columns + x] = look.tints[stripe];
          }
        }
      }
    }
    context.putImageData(image, 0, 0);
  }

  #look(thing, index) {
    const isLit = this.lit.has(index);
    if (!this.shown.masks && !isLit) return null;
    const normal = thing.hatched || thing.colors.length ? TINT : FAINT;
    const share = (this.lit.size ? (isLit ? STRONG : FAINT) : normal) * this.shown.tint;
    const colors = isLit && this.litColor ? [this.litColor] : thing.colors.length ? thing.colors : [UNASKED];
    return {
      tints: colors.map((color) => pixel(color, share)),
      line: pixel(colors[0], this.lit.size && !isLit ? 0.4 : 1),
      hatched: thing.hatched,
      crossed: thing.crossed,
      dashed: thing.dashed,
    };
  }

  /** Prompts, labels, and rings about what is too small to be seen. */
  #mark() {
    if (!this.groups) {
      this.specks = [];
      this.groups = this.view.things.flatMap((thing, index) => this.#group(thing, index));
      this.marks.replaceChildren(...this.groups.map(([, group]) => group));
    }
    this.groups.forEach(([index, group]) => {
      const isLit = this.lit.has(index);
      group.setAttribute("class", `${this.#isShown(index) ? "" : "away"} ${this.lit.size && !isLit ? "dim" : ""}`);
      for (const node of group.childNodes) {
        const isOn = isLit || (node.dataset.kind ? this.shown.prompts.has(node.dataset.kind) : this.shown.masks);
        node.classList.toggle("away", !isOn);
      }
    });
  }

  /** [[index, its marks]], or nothing. */
  #group(thing, index) {
    const prompts = thing.prompts.filter((prompt) => prompt.status !== "none")
      .sort((a, b) => (b.kind === "scribble") - (a.kind === "scribble")) // what is broad lies below
      .map((prompt) => svg("g", {"data-kind": prompt.kind}, this.#prompt(prompt, index)));
    const marks = [...prompts, ...this.#speck(thing, index), ...this.#label(thing, index)];
    if (!marks.length) return [];
    return [[index, svg("g", {"data-object": index, "--hue": css(thing.colors[0] ?? UNASKED)}, marks)]];
  }

  #speck(thing, index) {
    if (!this.runs[index].length || thing.hatched || this.specks.length >= MOST_SPECKS) return [];
    const [left, top, right, bottom] = boundsOf(this.runs[index], this.view.height);
    if (Math.max(right - left, bottom - top) * this.scale > SPECK) return [];
    const [cx, cy] = [(left + right) / 2, (top + bottom) / 2];
    this.specks.push([index, cx, cy]);
    return [svg("circle", {class: "speck", cx, cy, r: SPECK / this.scale})];
  }

  #label(thing, index) {
    if (!thing.label || !this.runs[index].length || this.view.things.length > MOST_LABELS) return [];
    const [x, y] = middle(this.runs[index], this.view.height);
    const room = Math.min(9 / this.scale, this.view.width / 2, this.view.height / 2);
    const inside = (place, size) => Math.min(Math.max(place, room), size - room);
    return [svg("text", {class: "tag", x: inside(x, this.view.width), y: inside(y, this.view.height),
      "font-size": 12 / this.scale,
      "stroke-width": 3 / this.scale}, thing.label)];
  }

  /** Whether a coordinate is a number that is worth drawing. */
  #isNear(place) {
    return Number.isFinite(place) && Math.abs(place) <= 2 * Math.max(this.view.width, this.view.height);
  }

  /** A prompt as what it is: discs of its radius, strokes, boxes, or a mask's outline. */
  #prompt(prompt, index) {
    if (prompt.kind === "mask") return this.#outline(prompt, index);
    const lines = this.#lines(prompt);
    const radius = Math.max(this.#isNear(prompt.radius) ? prompt.radius : 0, 0.5);
    if (prompt.kind === "point") {
      return lines.flat().slice(0, MOST_LINES).flatMap(([cx, cy]) => [
        svg("circle", {class: "shade", cx, cy, r: radius}),
        svg("circle", {class: "reach", cx, cy, r: radius}),
        svg("circle", {class: "dot", cx, cy, r: 4 / this.scale}),
      ]);
    }
    if (prompt.kind === "scribble") {
      return lines.flatMap((line) => {
        const points = (line.length === 1 ? [line[0], line[0]] : line).map((place) => place.join(",")).join(" ");
        const wide = Math.max(2 * radius, 5 / this.scale);
        return [
          svg("polyline", {class: "band edge", points, "stroke-width": wide + 2 / this.scale}),
          svg("polyline", {class: "band", points, "stroke-width": wide}),
          svg("polyline", {class: "core", points}),
        ];
      });
    }
    if (prompt.kind !== "box") return [];
    return lines.flatMap((line) => {
      const boxes = [];
      for (let at = 0; at + 1 < line.length; at += 2) {
        const [[x, y], [right, bottom]] = [line[at], line[at + 1]];
        const box = {x, y, width: Math.max(right - x, 0), height: Math.max(bottom - y, 0)};
        boxes.push(svg("rect", {class: "shade", ...box}), svg("rect", {class: "frame", ...box}),
          svg("rect", {class: "thread", ...box}));
      }
      return boxes;
    });
  }

  /** Points in their strokes, boxes or groups of clicks; those that are no places of the picture are left out. */
  #lines(prompt) {
    const lines = [];
    let at = 0;
    for (const length of prompt.parts.length ? prompt.parts : [prompt.points.length / 2]) {
      const line = [];
      for (let left = Math.min(length, MOST_POINTS); left >= 1 && at + 1 < prompt.points.length; left--, at += 2) {
        const [x, y] = [prompt.points[at], prompt.points[at + 1]];
        if (this.#isNear(x) && this.#isNear(y)) line.push([x, y]);
      }
      if (line.length) lines.push(line);
      if (lines.length >= MOST_LINES || at >= 2 * MOST_POINTS) break;
    }
    return lines;
  }

  /** A mask prompt's edge. */
  #outline(prompt, index) {
    try {
      const {width, height} = this.view;
      const d = outlinePath(decodeRuns(prompt.rle ?? "", height, width), height, width);
      return [svg("path", {class: "shade", d}), svg("path", {class: "frame dashed", d})];
    } catch (error) {
      this.on.trouble?.(new Map([[index, `mask prompt: ${error.message}`]]));
      return [];
    }
  }

  /** The thing under a pointer: the smallest mask there, or a speck whose ring is about it. */
  #at(event) {
    if (!this.under) return -1;
    const box = this.canvas.getBoundingClientRect();
    const [across, down] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    if (!(across >= 0 && down >= 0 && across < 1 && down < 1)) return -1;
    const [x, y] = [across * this.view.width, down * this.view.height];
    const near = this.specks.find(([index, cx, cy]) =>
      this.#isShown(index) && Math.hypot(cx - x, cy - y) * this.scale <= SPECK);
    if (near) return near[0];
    const {width: columns, height: rows} = this.canvas;
    return this.under[Math.floor(across * columns) * rows + Math.floor(down * rows)] - 1;
  }

  #hover(found) {
    if (found !== this.hovered) this.on.hover?.((this.hovered = found));
  }
}

/** Why a picture cannot be shown, in the server's words where there is one. */
async function reason(url) {
  const unknown = "the picture cannot be shown";
  if (!url.startsWith("/")) return unknown;
  try {
    return (await (await fetch(url)).json()).error ?? unknown;
  } catch {
    return unknown;
  }
}

function missing(why) {
  return el("div", {class: "missing"}, el("span", {}, why));
}

/** A little-endian RGBA pixel. */
function pixel([red, green, blue], share) {
  return ((Math.round(255 * Math.min(share, 1)) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}
