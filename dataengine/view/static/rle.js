// COCO's compressed run lengths: six bits a character, column by column, differences to the run two before.

const MOST_PIXELS = 2 ** 30, MOST_ACROSS = 2 ** 20; // of a canvas; positions fit 32 bits
const MOST_STEPS = 6000; // of an outline: finer masks are made coarser

/** Counts that are not those of a mask on their canvas. */
export class MaskError extends Error {}

/**
 * Where the set runs of a mask begin and end.
 * @param {string} text compressed counts. @param {number} height @param {number} width canvas, px
 * @returns {Int32Array} start, stop, start, stop, … in column-major order, half open
 * @throws {MaskError} the counts are not those of such a canvas
 */
export function decodeRuns(text, height, width) {
  const total = height * width;
  if (!(height > 0 && width > 0)) throw new MaskError("the canvas has no pixels");
  if (total > MOST_PIXELS || Math.max(height,
    width) > MOST_ACROSS) throw new MaskError("the canvas is too large to be shown");
  const runs = new Int32Array(text.length + 1);
  let used = 0, position = 0, at = 0, before = 0, last = 0, number = 0;
  while (at < text.length) {
    let value = 0, bits = 0, more = true;
    while (more) {
      if (at >= text.length || bits > 30) throw new MaskError("the mask's counts are damaged");
      const code = text.charCodeAt(at++) - 48;
      if (code < 0 || code > 63) throw new MaskError("the mask's counts are damaged");
      value |= (code & 31) << bits;
      bits += 5;
      more = (code & 32) !== 0;
      if (!more && code & 16 && bits < 32) value |= -1 << bits;
    }
    if (number > 2) value += before;
    if (value < 0 || position + value > total) throw new MaskError("the mask's counts do not fit its canvas");
    if (number % 2 === 1 && value > 0) {
      runs[used++] = position;
      runs[used++] = position + value;
    }
    position += value;
    before = last;
    last = value;
    number += 1;
  }
  if (position !== total) throw new MaskError("the mask's counts do not fill its canvas");
  return runs.subarray(0, used);
}

/** How the canvas's rows or columns fall on rendered ones: where each begins, and the end. */
export function grid(size, rendered) {
  const starts = new Int32Array(size + 1);
  for (let place = 0; place <= size; place++) starts[place] = Math.ceil((place * rendered) / size - 0.5);
  return starts;
}

/**
 * Paint a mask's runs with a value, at another scale.
 * @param {Uint16Array} owner (columns * rows), column-major @param {Int32Array} runs @param {number} height of the
 *   canvas
 * @param {Int32Array} xs grid of columns @param {Int32Array} ys grid of rows @param {number} rows rendered
 * @param {boolean} thick whether what falls between rendered pixels is drawn one wide
 * @returns {number} pixels painted
 */
export function paintRuns(owner, runs, height, xs, ys, rows, value, thick = false) {
  const columns = owner.length / rows, least = thick ? 1 : 0;
  let painted = 0;
  for (let run = 0; run < runs.length; run += 2) {
    let from = runs[run];
    const stop = runs[run + 1];
    let column = Math.floor(from / height);
    while (from < stop) {
      const end = Math.min(stop, (column + 1) * height);
      const top = Math.min(ys[from - column * height], rows - least);
      const bottom = Math.max(ys[end - column * height], top + least);
      if (bottom > top) {
        const left = Math.min(xs[column], columns - least), right = Math.max(xs[column + 1], left + least);
        for (let x = left; x < right; x++) owner.fill(value, x * rows + top, x * rows + bottom);
        painted += (right - left) * (bottom - top);
      }
      from = end;
      column += 1;
    }
  }
  return painted;
}

/** [left, top, right, bottom] of a mask that is not empty, half open, px. */
export function boundsOf(runs, height) {
  const right = Math.floor((runs.at(-1) - 1) / height) + 1;
  let top = height, bottom = 0;
  for (let run = 0; run < runs.length; run += 2) {
    const from = runs[run] % height, last = (runs[run + 1] - 1) % height;
    if (runs[run + 1] - runs[run] > last + 1) return [Math.floor(runs[0] / height), 0, right,
      height]; // over a column's end
    top = Math.min(top, from);
    bottom = Math.max(bottom, last + 1);
  }
  return [Math.floor(runs[0] / height), top, right, bottom];
}

/** The middle of the longest run in one column: a place that surely lies in the mask. */
export function middle(runs, height) {
  let best = -1, place = [0, 0];
  for (let run = 0; run < runs.length; run += 2) {
    const column = Math.floor(runs[run] / height);
    const stop = Math.min(runs[run + 1], (column + 1) * height);
    if (stop - runs[run] > best) {
      best = stop - runs[run];
      place = [column + 0.5, (runs[run] + stop) / 2 - column * height];
    }
  }
  return place;
}

/**
 * SVG path of closed loops around a mask, along borders of its pixels; a mask of very many steps is made coarser.
 * @param {Int32Array} runs @param {number} height @param {number} width of the canvas, px
 */
export function outlinePath(runs, height, width) {
  let columns = columnsOf(runs, height), step = 1;
  while (columns.size && total(columns) > MOST_STEPS && step < Math.max(height, width)) {
    step *= 2;
    columns = coarse(runs, height, width, step);
  }
  return loops(columns).map((loop) => pathOf(loop, step)).join("");
}

/** Column -> [top, bottom, top, bottom, …] of its set pixels. */
function columnsOf(runs, height) {
  const columns = new Map();
  for (let run = 0; run < runs.length; run += 2) {
    for (let from = runs[run]; from < runs[run + 1];) {
      const column = Math.floor(from / height), stop = Math.min(runs[run + 1], (column + 1) * height);
      const ends = columns.get(column);
      if (ends) ends.push(from - column * height, stop - column * height);
      else columns.set(column, [from - column * height, stop - column * height]);
      from = stop;
    }
  }
  return columns;
}

function total(columns) {
  let number = 0;
  for (const ends of columns.values()) number += ends.length;
  return number;
}

function coarse(runs, height, width, step) {
  const across = Math.ceil(width / step), down = Math.ceil(height / step);
  const cells = new Uint16Array(across * down);
  const place = (size) => Int32Array.from({length: size + 1}, (_, at) => Math.floor(at / step));
  paintRuns(cells, runs, height, place(width), place(height), down, 1, true);
  const found = [];
  for (let at = 0; at < cells.length; at++) {
    if (!cells[at]) continue;
    const start = at;
    while (at < cells.length && cells[at]) at++;
    found.push(start, at);
  }
  return columnsOf(found, down);
}

/** Closed loops of corners [x, y], the mask on their right. */
function loops(columns) {
  const next = new Map(); // "x y" -> corners that an edge from there leads to
  const edge = (x0, y0, x1, y1) => {
    const key = `${x0} ${y0}`;
    if (next.has(key)) next.get(key).push([x1, y1]);
    else next.set(key, [[x1, y1]]);
  };
  for (const [x, ends] of columns) {
    for (let at = 0; at < ends.length; at += 2) {
      edge(x, ends[at], x + 1, ends[at]);
      edge(x + 1, ends[at + 1], x, ends[at + 1]);
    }
    for (const [top, bottom] of without(ends, columns.get(x - 1) ?? [])) edge(x, bottom, x, top);
    for (const [top, bottom] of without(ends, columns.get(x + 1) ?? [])) edge(x + 1, top, x + 1, bottom);
  }
  const found = [];
  for (const [key, leads] of next) {
    while (leads.length) {
      const loop = [key.split(" ").map(Number)];
      for (let corner = leads.pop(); corner; corner = next.get(`${corner[0]} ${corner[1]}`)?.pop()) loop.push(corner);
      found.push(loop);
    }
  }
  return found;
}

/** Parts [top, bottom] of one column's runs that another column's lack. */
function without(ends, others) {
  const parts = [];
  let other = 0;
  for (let at = 0; at < ends.length; at += 2) {
    let top = ends[at];
    const bottom = ends[at + 1];
    while (other < others.length && others[other + 1] <= top) other += 2;
    for (let there = other; there < others.length && others[there] < bottom; there += 2) {
      if (others[there] > top) parts.push([top, others[there]]);
      top = Math.max(top, others[there + 1]);
    }
    if (top < bottom) parts.push([top, bottom]);
  }
  return parts;
}

/** Corners between two edges in one direction are left out. */
function pathOf(loop, step) {
  const parts = [`M${loop[0][0] * step} ${loop[0][1] * step}`];
  for (let at = 1; at < loop.length - 1; at++) {
    const [[x0, y0], [x, y], [x1, y1]] = [loop[at - 1], loop[at], loop[at + 1]];
    if (x0 === x && x === x1 || y0 === y && y === y1) continue;
    parts.push(y0 === y ? `H${x * step}` : `V${y * step}`);
  }
  const [[x0, y0], [x, y]] = loop.slice(-2);
  parts.push(y0 === y && x0 !== x ? `H${x * step}Z` : `V${y * step}Z`);
  return parts.join("");
}
