// The viewer.

import {renderCard} from "./card.js";
import {el} from "./dom.js";

const number = new URLSearchParams(location.search).get("n") ?? "0";
const data = await (await fetch(`/api/row?n=${number}`)).json();
document.getElementById("view").append(el("section", {class: "detail"}, renderCard(data)));
