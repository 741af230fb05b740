// A loop of rounds: what each round did, in a table and in curves.

import {el, count} from "./dom.js";
import {lineChart} from "./lines.js";

const data = JSON.parse(document.getElementById("data").textContent);
const sections = [];

document.title = `${data.title} – dataengine loop`;
part("rounds", "Rounds", [el("div", {class: "box scroll"}, roundTable(data.table))]);
part("curves", "Over the rounds", [el("div", {class: "box run-charts"},
  data.charts.map((chart) => lineChart({...chart, over: "round"})))]);
if (Object.keys(data.lost).length > 0) part("rejected", "Why masks were rejected", [lostTable(data.lost)]);
document.getElementById("report").replaceWith(el("main", {class: "page"},
  el("header", {}, el("h1", {}, data.title), el("p", {}, data.description),
    el("p", {}, data.ended ? `Ended: ${data.ended}.` : "It goes on."),
    el("p", {class: "faint"}, el("code", {}, data.folder))),
  el("nav", {class: "contents", "aria-label": "sections"},
    sections.map(({id, title}) => el("a", {href: `#${id}`}, title))),
  sections.map(({node}) => node)));
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();

function part(id, title, nodes) {
  sections.push({id, title, node: el("section", {class: "part", id, "aria-labelledby": `${id}-title`},
    el("h2", {id: `${id}-title`}, title), nodes)});
}

function roundTable([[name, ...heads], ...rows]) {
  return el("table", {},
    el("thead", {}, el("tr", {}, el("th", {scope: "col"}, name),
      heads.map((head) => el("th", {scope: "col", class: "number"}, head)))),
    el("tbody", {}, rows.map(([label, ...cells]) => el("tr", {}, el("th", {scope: "row"}, label),
      cells.map((cell) => el("td", {class: "number"}, cell))))));
}

function lostTable(lost) {
  const rounds = Object.keys(lost);
  const reasons = [...new Set(rounds.flatMap((round) => Object.keys(lost[round])))].sort();
  return el("div", {class: "box scroll"}, roundTable([["round", ...rounds],
    ...reasons.map((reason) => [reason, ...rounds.map((round) => count(lost[round][reason] ?? 0))])]));
}
