// COCO's compressed run lengths: six bits a character, column by column, differences to the run two before.

/**
 * Where the set runs of a mask begin and end.
 * @param {string} text compressed counts. @param {number} height @param {number} width canvas, px
 * @returns {Int32Array} start, stop, start, stop, … in column-major order, half open
 * @throws {Error} the counts are not those of such a canvas
 */
export function decodeRuns(text, height, width) {
  const total = height * width;
  const runs = new Int32Array(text.length + 1);
  let used = 0, position = 0, at = 0, before = 0, last = 0, number = 0;
  while (at < text.length) {
    let value = 0, bits = 0, more = true;
    while (more) {
      if (at >= text.length || bits > 30) throw new Error("the mask's counts are damaged");
      const code = text.charCodeAt(at++) - 48;
      if (code < 0 || code > 63) throw new Error("the mask's counts are damaged");
      value |= (code & 31) << bits;
      bits += 5;
      more = (code & 32) !== 0;
      if (!more && code & 16 && bits < 32) value |= -1 << bits;
    }
    if (number > 2) value += before;
    if (value < 0 || position + value > total) throw new Error("the mask's counts do not fit its canvas");
    if (number % 2 === 1) {
      runs[used++] = position;
      runs[used++] = position + value;
    }
    position += value;
    before = last;
    last = value;
    number += 1;
  }
  if (position !== total) throw new Error("the mask's counts do not fill its canvas");
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
 * @param {Uint16Array} owner (columns * rows), column-major @param {Int32Array} runs @param {number} height of the canvas
 * @param {Int32Array} xs grid of columns @param {Int32Array} ys grid of rows @param {number} rows rendered
 */
export function paintRuns(owner, runs, height, xs, ys, rows, value) {
  for (let run = 0; run < runs.length; run += 2) {
    let from = runs[run];
    const stop = runs[run + 1];
    let column = Math.floor(from / height);
    while (from < stop) {
      const end = Math.min(stop, (column + 1) * height);
      const top = ys[from - column * height], bottom = ys[end - column * height];
      if (bottom > top) {
        for (let x = xs[column]; x < xs[column + 1]; x++) owner.fill(value, x * rows + top, x * rows + bottom);
      }
      from = end;
      column += 1;
    }
  }
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
