// Curves over steps. Pointing at a chart, touching it, or arrow keys give the numbers at a step; so does its table.

import {count, el, plural, svg} from "./dom.js";
import {niceStep, shortNumber} from "./charts.js";

const WIDE = 1000, HIGH = 1000; // of the drawing, which is stretched to its frame
const MOST_ROWS = 60; // of the table

/** A number as one reads it, three digits that count. */
export function threeDigits(value) {
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(2);
  return value.toLocaleString("en-US", {maximumSignificantDigits: 3});
}

/**
 * A chart of curves.
 * @param {object} chart {title, unit, curves: [{name, points: [[step, value], …]}], over}, points in order of steps,
 *   and what a step is called
 */
export function lineChart({title, unit, curves, over = "step"}) {
  const every = curves.flatMap(({points}) => points);
  const last = Math.max(1, ...every.map(([x]) => x));
  const ticks = ticksOf(Math.min(0, ...every.map(([, y]) => y)), Math.max(...every.map(([, y]) => y)));
  const [low, high] = [ticks[0], ticks.at(-1)];
  const across = (x) => (WIDE * x) / last;
  const up = (y) => HIGH * (1 - (y - low) / (high - low));
  const steps = [...new Set(every.map(([x]) => x))].sort((a, b) => a - b);
  const cursor = svg("line", {class: "cursor", y1: 0, y2: HIGH, visibility: "hidden"});
  const values = curves.map(() => el("b", {}));
  const at = el("span", {class: "faint"});
  let place = null;
  const tell = (index) => {
    place = index;
    const step = steps[index ?? steps.length - 1];
    at.textContent = `${over} ${count(Math.round(step))}`;
    cursor.setAttribute("visibility", index === null ? "hidden" : "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, across(step));
    curves.forEach(({points}, number) => (values[number].textContent = ` ${read(points, step, unit)}`));
  };
  const under = (event) => {
    const box = plot.getBoundingClientRect();
    return nearest(steps, ((event.clientX - box.left) / box.width) * last);
  };
  const plot = el("div", {
    class: "plot", tabindex: "0", role: "group",
    "aria-label": `${title}: ${curves.length} curve${plural(curves.length)} over ${count(Math.round(last))} ${over}s; `
      + "arrow keys read them, the table below has them all",
    onpointermove: (event) => tell(under(event)), onpointerdown: (event) => tell(under(event)),
    onpointerleave: (event) => event.pointerType === "mouse" && tell(null), onblur: () => tell(null),
    onkeydown: (event) => {
      const end = steps.length - 1;
      const to = {ArrowRight: (place ?? -1) + 1, ArrowLeft: (place ?? 1) - 1, Home: 0, End: end}[event.key];
      if (to === undefined) return;
      event.preventDefault();
      tell(Math.min(Math.max(to, 0), end));
    },
  }, el("div", {class: "frame"},
    svg("svg", {viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", "aria-hidden": "true"},
      ticks.map((tick) => svg("line", {class: "grid", x1: 0, x2: WIDE, y1: up(tick), y2: up(tick)})),
      curves.map(({points}, number) => svg("path", {class: `line tone${number % 5}`, d: path(points, across, up)})),
      cursor)));
  tell(null);
  return el("figure", {class: "curves"},
    el("figcaption", {}, el("h4", {}, unit ? `${title}, ${unit}` : title)),
    el("ul", {class: "legend"}, el("li", {}, at), curves.map(({name}, number) =>
      el("li", {class: `tone${number % 5}`}, el("i", {}), el("span", {}, curves.length > 1 && name, values[number])))),
    el("div", {class: "axes"},
      el("div", {class: "yaxis", "aria-hidden": "true"},
        ticks.map((tick) => el("span", {"--at": (tick - low) / (high - low)}, short(tick)))),
      plot,
      el("div", {class: "xaxis", "aria-hidden": "true"}, [0, 0.5, 1].map((share) =>
        el("span", {"--at": share}, shortNumber(Math.round(share * last)))))),
    numbersOf(curves, steps, unit, over));
}

function path(points, across, up) {
  if (points.length === 1) return `M${across(points[0][0]) - 4} ${up(points[0][1])}h8`; // a point is seen, too
  return points.map(([x, y], index) => `${index ? "L" : "M"}${across(x).toFixed(1)} ${up(y).toFixed(1)}`).join("");
}

function read(points, step, unit) {
  const found = points[nearest(points.map(([x]) => x), step)];
  return threeDigits(found[1]) + (unit === "%" ? " %" : "");
}

/** Index of the number that is closest to another. */
function nearest(numbers, wanted) {
  let best = 0;
  numbers.forEach((number, index) => {
    if (Math.abs(number - wanted) < Math.abs(numbers[best] - wanted)) best = index;
  });
  return best;
}

/** Round ticks from below `least` to above `most`. */
function ticksOf(least, most) {
  const step = niceStep((most - least || Math.abs(most) || 1) / 4, false);
  const ticks = [];
  for (let k = Math.floor(least / step + 1e-9); ticks.length < 2 || ticks.at(-1) < most - 1e-9 * step; k++) {
    ticks.push(k * step);
  }
  return ticks;
}

function short(value) {
  return value !== 0 && Math.abs(value) < 0.01 ? value.toExponential(0) : shortNumber(Number(value.toPrecision(6)));
}

/** The same numbers as a table, thinned where there are many. */
function numbersOf(curves, steps, unit, over) {
  const every = Math.ceil(steps.length / MOST_ROWS);
  const shown = steps.filter((_, index) => index % every === 0 || index === steps.length - 1);
  const details = el("details", {class: "numbers", ontoggle: () => {
    if (!details.open || details.querySelector("table")) return;
    details.append(el("div", {class: "scroll"}, el("table", {},
      el("thead", {}, el("tr", {}, el("th", {scope: "col"}, over),
        curves.map(({name}) => el("th", {scope: "col", class: "number"}, name)))),
      el("tbody", {}, shown.map((step) => el("tr", {}, el("th", {scope: "row"}, count(Math.round(step))),
        curves.map(({points}) => el("td", {class: "number"}, read(points, step, unit)))))))));
  }}, el("summary", {}, "Numbers"));
  return details;
}
