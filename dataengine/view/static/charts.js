// Bars and histograms, drawn as HTML: they grow and shrink with the page without being drawn again, their texts keep
// their size, and a page needs no library, which would be larger than all of its other scripts together.

import {count, el, percent} from "./dom.js";

const MOST_TICKS = 8;

/** A number as one reads it: 1,234 or 0.05. */
export function plainNumber(value) {
  return value.toLocaleString("en-US", {maximumFractionDigits: 2});
}

/** A short number for an axis: 1,500, 20 k, 1.5 M. */
export function shortNumber(value) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (value >= size) return `${plainNumber(value / (unit === "k" ? 1e3 : size))} ${unit}`;
  }
  return plainNumber(value);
}

/** Round steps of 1, 2, 5, 10, … from 0 that reach `most`, at most `number` of them. */
export function ticksTo(most, number, whole = true) {
  const step = niceStep(most / number, whole);
  const ticks = [];
  for (let k = 0; ticks.length === 0 || ticks.at(-1) < most; k++) ticks.push(k * step);
  return ticks;
}

/** The smallest of 1, 2, 5, 10, … (or 0.1, 0.2, …) that is at least `least`. */
export function niceStep(least, whole = true) {
  if (!(least > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(least) + 1e-9);
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((value) => value >= least * (1 - 1e-9));
  return whole ? Math.max(1, step) : step;
}

/**
 * A table whose last columns are a number, its share and a bar.
 * @param {object} chart {caption, heads: names of the label's columns, rows: [{labels: texts, value}], unit, of: whole}
 */
export function barTable({caption, heads, rows, unit, of = null}) {
  const most = Math.max(1, ...rows.map((row) => row.value));
  const share = (value) => (of ? percent(value / of) : null);
  return el("div", {class: "scroll"}, el("table", {class: heads.length > 2 ? "bars wide" : "bars"},
    el("caption", {class: "unseen"}, caption),
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", {scope: "col"}, head)),
      el("th", {scope: "col", class: "number"}, unit), of && el("th", {scope: "col", class: "number"}, "share"),
      el("th", {class: "track", "aria-hidden": "true"}))),
    el("tbody", {}, rows.map((row) => el("tr", {},
      row.labels.map((label, index) => (index ? el("td", {}, label) : el("th", {scope: "row"}, label))),
      el("td", {class: "number"}, count(row.value)), of && el("td", {class: "number faint"}, share(row.value)),
      el("td", {class: "track", "aria-hidden": "true"}, el("i", {"--size": row.value / most})))))));
}

/**
 * One bar in parts, with a legend that gives their numbers.
 * @param {object} chart {label, unit, parts: [{name, value, about}]}
 */
export function partBar({label, unit, parts}) {
  const total = parts.reduce((sum, part) => sum + part.value, 0);
  return el("div", {class: "parts"},
    el("div", {class: "partbar", "aria-hidden": "true"},
      parts.map((part, index) => part.value > 0 && el("i", {class: `part${index}`, "--size": part.value / total}))),
    el("ul", {"aria-label": label}, parts.map((part, index) => el("li", {},
      el("i", {class: `key part${index}`}), el("b", {}, part.name),
      part.about && el("span", {class: "faint"}, ` ${part.about}`),
      ` ${percent(total ? part.value / total : 0)}`, el("span", {class: "faint"}, ` ${count(part.value)} ${unit}`)))));
}

/**
 * A histogram. Pointing at a bar, touching it, or going to it with arrow keys gives its numbers; so does its table.
 * @param {object} chart {title, about, edges, counts, open: the last bin holds larger values too, log: bins grow like
 *   1, 2, 5, …, shares: edges are shares, unit: of the values, of: what is counted}
 */
export function histogram(chart) {
  const {title, counts, unit, of, about} = chart;
  const total = counts.reduce((sum, value) => sum + value, 0);
  const ticks = ticksTo(Math.max(1, ...counts), 4);
  const top = ticks.at(-1);
  const said = el("output", {class: "said-bin", "aria-live": "polite"});
  const tell = (index) => {
    bars.forEach((bar, at) => bar.classList.toggle("lit", at === index));
    said.replaceChildren(...(index === null ? [el("span", {class: "faint"}, `${count(total)} ${of}`)]
      : [el("b", {}, binName(chart, index)),
        ` ${unit}: ${count(counts[index])} ${of}, ${percent(counts[index] / total)}`]));
  };
  const bars = counts.map((value) => el("i", {"--size": value / top, class: value ? "bar" : "bar none"}));
  let at = null;
  const plot = el("div", {
    class: "plot", tabindex: "0", role: "group",
    "aria-label": `${title}: histogram of ${counts.length} bars; arrow keys read them, the table below has them all`,
    onpointermove: (event) => tell((at = under(event))), onpointerdown: (event) => tell((at = under(event))),
    onpointerleave: (event) => event.pointerType === "mouse" && document.activeElement !== plot && tell((at = null)),
    onfocus: () => tell((at ??= 0)), onblur: () => tell((at = null)),
    onkeydown: (event) => {
      const to = {ArrowRight: (at ?? -1) + 1, ArrowLeft: (at ?? 1) - 1, Home: 0, End: counts.length - 1}[event.key];
      if (to === undefined) return;
      event.preventDefault();
      event.stopPropagation();
      tell((at = Math.min(Math.max(to, 0), counts.length - 1)));
    },
  }, ticks.slice(1).map((tick) => el("i", {class: "rule", "--at": tick / top})), bars);
  const under = (event) => {
    const box = plot.getBoundingClientRect();
    return Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * counts.length), 0),
      counts.length - 1);
  };
  tell(null);
  return el("figure", {class: "histogram"},
    el("figcaption", {}, el("h4", {}, title), about && el("p", {class: "faint"}, about)),
    said,
    el("div", {class: "axes"},
      el("div", {class: "yaxis", "aria-hidden": "true"},
        ticks.map((tick) => el("span", {"--at": tick / top}, shortNumber(tick)))),
      plot,
      el("div", {class: "xaxis", "aria-hidden": "true"},
        placesOf(chart).map(({at: place, text}) => el("span", {"--at": place}, text))),
      el("div", {class: "xname faint", "aria-hidden": "true"}, chart.log ? `${unit}, on a logarithmic axis` : unit)),
    numbersOf(chart, total));
}

/** What a bin holds, in words. */
export function binName({edges, counts, open, shares}, index) {
  const from = edges[index], to = edges[index + 1];
  if (shares) return `${percent(from, 0)} to ${percent(to, 0)}`;
  if (open && index === counts.length - 1) return `${count(from)} or more`;
  return to - from === 1 ? count(from) : `${count(from)} to ${count(to - 1)}`;
}

/** Ticks of the horizontal axis: where, as a share of its length, and what they say. */
function placesOf({edges, counts, shares, log, open}) {
  const number = counts.length;
  if (shares) return [0, 0.25, 0.5, 0.75, 1].map((at) => ({at, text: percent(at, 0)}));
  if (log) {
    const powers = edges.map((edge, index) => ({at: index / number, edge}))
      .filter(({edge}) => edge === 0 || Number.isInteger(Math.log10(edge)));
    return powers.map(({at, edge}) => ({at, text: shortNumber(edge)}));
  }
  const width = edges[1] - edges[0];
  const step = Math.max(width, niceStep((edges.at(-1) - edges[0]) / MOST_TICKS));
  const middle = width === 1 ? 0.5 / number : 0; // a bin of one value has its name below it
  return edges.slice(0, middle ? -1 : undefined)
    .map((edge, index) => ({at: index / number + middle, edge}))
    .filter(({edge}) => edge % step === 0)
    .map(({at, edge}) => ({at, text: shortNumber(edge) + (open && edge === edges.at(-1) ? "+" : "")}));
}

/** The same numbers as a table. */
function numbersOf(chart, total) {
  const details = el("details", {class: "numbers", ontoggle: () => {
    if (!details.open || details.querySelector("table")) return;
    details.append(el("div", {class: "scroll"}, el("table", {},
      el("thead", {}, el("tr", {}, [chart.unit, chart.of, "share"].map((head, index) =>
        el("th", {scope: "col", class: index ? "number" : null}, head)))),
      el("tbody", {}, chart.counts.map((value, index) => el("tr", {},
        el("th", {scope: "row"}, binName(chart, index)), el("td", {class: "number"}, count(value)),
        el("td", {class: "number faint"}, percent(value / total))))))));
  }}, el("summary", {}, "Numbers"));
  return details;
}
