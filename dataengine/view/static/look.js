// Which condition has which colour: as in contact sheets (dataengine/sheet/look.py).

const BASE = [
  [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [213, 94, 0], [204, 121, 167],
  [0, 114, 178], [154, 205, 50], [148, 103, 189], [255, 152, 150], [23, 190, 207], [188, 143, 99],
];
export const COLORS = [
  ...BASE,
  ...BASE.map((color) => color.map((channel) => Math.floor((channel * 5) / 8))),
  ...BASE.map((color) => color.map((channel) => Math.floor((channel + 255) / 2))),
];
export const EASY_COLORS = 8;
export const UNASKED = [150, 154, 160];

export function css(color) {
  return `rgb(${color.join(" ")})`;
}

/** Index of a condition -> its colour; only conditions that have an object have one. */
export function colorsOf(conditions) {
  const colors = new Map();
  conditions.forEach((condition, index) => {
    if (condition.objects.length) colors.set(index, COLORS[colors.size % COLORS.length]);
  });
  return colors;
}

/** Index of a condition -> its number, where there are too many colours to tell apart. */
export function tagsOf(conditions) {
  const found = [...colorsOf(conditions).keys()];
  return new Map(found.length > EASY_COLORS ? found.map((index, rank) => [index, String(rank + 1)]) : []);
}
