// One sample in two datasets, side by side, and what differs.

import {ask} from "./api.js";
import {renderCard} from "./card.js";
import {cut, el, tail} from "./dom.js";

const MOST = 100;
const MEANINGS = {added: "is new", removed: "is gone", mask: "has another mask", category: "has another category",
  prompts: "has other prompts", lineage: "has another lineage"};

/**
 * @param {string} id @param {object[]} datasets both of /api/datasets @param {(d: number, id: string) => string} linkOf
 * @param {AbortSignal} signal ends its questions
 */
export async function compared(id, datasets, linkOf, signal) {
  const change = await ask("/api/change", {id}, signal);
  const numbers = [change.left, change.right];
  const cards = await Promise.all(numbers.map((n, d) => n === null ? null : ask("/api/row", {d, n}, signal)));
  const sides = cards.map((data, d) => el("div", {class: "side"},
    el("h3", {}, `${d ? "New" : "Old"}: ${tail(datasets[d].uri, 80)}`),
    el("div", {class: "detail"}, data ? renderCard(data, {href: linkOf(d, id)})
      : el("p", {class: "faint empty"}, "has no such sample"))));
  return el("section", {class: "compare"}, summary(change, cards), el("div", {class: "sides"}, sides));
}

function summary(change, cards) {
  if (cards.includes(null)) {
    return el("p", {class: "change"}, cards[0] ? "The new dataset does not have it." : "It is new.");
  }
  if (!change.fields.length) return el("p", {class: "change"}, "Both are the same.");
  const objects = change.objects.slice(0, MOST).map((object) => el("li", {},
    el("span", {class: "id"}, cut(object.annotation_id, 60)[0]), ` ${MEANINGS[object.change] ?? object.change}`,
    object.iou !== null && object.iou !== undefined && `, IoU ${object.iou.toFixed(3)}`));
  const left = change.objects.length - objects.length;
  return el("div", {class: "change"},
    el("p", {}, `Differs in: ${change.fields.map((name) => cut(name, 40)[0]).join(", ")}`),
    objects.length > 0 && el("ul", {}, objects), left > 0 && el("p", {class: "faint"}, `and ${left} more objects`));
}
