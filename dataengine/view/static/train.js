// A training run: results, curves of its stages, and predictions over time.

import {el, count} from "./dom.js";
import {lineChart} from "./lines.js";

const data = JSON.parse(document.getElementById("data").textContent);
const sections = [];

document.title = `${data.title} – dataengine training run`;
if (data.results) part("results", "Results", null, [el("div", {class: "box scroll"}, resultTable(data.results))]);
for (const stage of data.stages) {
  part(`stage-${stage.name}`, `Stage ${stage.name}`, aboutStage(stage), stageNodes(stage));
}
document.getElementById("report").replaceWith(el("main", {class: "page"},
  el("header", {}, el("h1", {}, data.title), el("p", {}, data.description),
    el("p", {class: "faint"}, el("code", {}, data.folder))),
  el("nav", {class: "contents", "aria-label": "sections"},
    sections.map(({id, title}) => el("a", {href: `#${id}`}, title))),
  sections.map(({node}) => node)));
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();

function part(id, title, about, nodes) {
  sections.push({id, title, node: el("section", {class: "part", id, "aria-labelledby": `${id}-title`},
    el("h2", {id: `${id}-title`}, title), about && el("p", {class: "faint"}, about), nodes)});
}

function aboutStage({steps, tasks}) {
  return steps ? `${count(steps)} steps of ${tasks.join(", ")}.` : "Nothing is logged yet.";
}

function stageNodes(stage) {
  return [
    el("dl", {class: "facts"}, Object.entries(stage.settings).map(([name, value]) =>
      [el("dt", {}, name), el("dd", {}, value)])),
    stage.scores.length > 0 && [el("h3", {}, "Scores on held-out data"), charts(stage.scores)],
    stage.pictures.length > 0 && [el("h3", {}, "Predictions over time"), pictures(stage.pictures)],
    stage.charts.length > 0 && [el("h3", {}, "Training"), charts(stage.charts)],
  ];
}

function charts(list) {
  return el("div", {class: "box run-charts"}, list.map(lineChart));
}

function pictures(list) {
  return el("div", {class: "box"}, list.map(({sample, times}) => [el("h4", {}, sample),
    el("div", {class: "times", tabindex: "0", role: "group", "aria-label": `${sample} over time`},
      times.map(({about, src}) => el("figure", {},
        el("img", {src, alt: `${sample}, ${about}`, loading: "lazy"}), el("figcaption", {}, about))))]));
}

function resultTable(results) {
  const columns = Object.keys(results);
  const percent = (value) => (value === undefined ? "–" : (100 * value).toFixed(1));
  return el("table", {},
    el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "score, %"),
      columns.map((column) => el("th", {scope: "col", class: "number"}, column)))),
    el("tbody", {}, Object.keys(results.trained).map((name) => el("tr", {}, el("th", {scope: "row"}, name),
      columns.map((column) => el("td", {class: "number"}, percent(results[column][name])))))));
}
