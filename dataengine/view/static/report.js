// The report: what a dataset holds, in numbers and samples.

import {renderCard} from "./card.js";
import {el} from "./dom.js";

const data = JSON.parse(document.getElementById("data").textContent);
document.title = data.title;
document.getElementById("report").append(
  el("h1", {}, data.title),
  el("section", {class: "cards"}, data.samples.map((sample) => renderCard(sample))),
);
