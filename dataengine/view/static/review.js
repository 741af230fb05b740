// The review: a queue of masks, a key for each word on them. The server has saved a word when the next mask is shown.

import {count, el, percent, said} from "./dom.js";
import {Stage} from "./stage.js";

const SAYS = [
  ["accept", "a", "Accept"], ["reject", "r", "Reject"], ["skip", "s", "Skip"],
  ["whole_image_bad", "b", "Whole image bad"],
];
const MAGENTA = [255, 0, 170]; // few things have this colour
const LONGEST_TEXT = 300, LONGEST_SECONDS = 3600;

const box = document.getElementById("review");
const trouble = el("p", {class: "trouble", role: "alert"});
let reviewer = new URLSearchParams(location.search).get("reviewer") ?? "";
let state = null; // of the reviewer: serial, total, decided, next, skipped, disputed
let item = null; // that is shown
let stage = null;
let shownAt = 0; // ms
let again = []; // places that are looked at a second time
let isBusy = false; // a word is on its way, or the next mask
let areMasksShown = true;

async function answer(response) {
  const found = await response.json().catch(() => ({error: `the server answers ${response.status}`}));
  if (!response.ok) throw Object.assign(new Error(found.error), {changed: found.changed === true});
  return found;
}

async function reach(path, options = {}) {
  const response = await fetch(path, options).catch(() => {
    throw new Error("The server does not answer: was `dataengine review serve` stopped?");
  });
  return answer(response);
}

function write(path, body) {
  const text = JSON.stringify({reviewer, serial: state.serial, ...body});
  return reach(path, {method: "POST", headers: {"Content-Type": "application/json"}, body: text});
}

/** One thing at a time; what goes wrong is said, and nothing is lost: the server knows what was saved. */
async function alone(work) {
  if (isBusy) return;
  isBusy = true;
  trouble.textContent = "";
  try {
    await work();
  } catch (error) {
    trouble.textContent = error.message;
    if (error.changed) await begin().catch((other) => (trouble.textContent = other.message));
  } finally {
    isBusy = false;
  }
}

async function begin() {
  state = await reach(`/api/state?${new URLSearchParams({reviewer})}`);
  await go(state.next);
}

async function go(n) {
  item = n === null ? null : await reach(`/api/item?${new URLSearchParams({n})}`);
  draw();
}

function say(action) {
  return alone(async () => {
    if (!item) return;
    const seconds = Math.min((performance.now() - shownAt) / 1000, LONGEST_SECONDS);
    const before = item.n;
    state = await write("/api/word", {entry_id: item.entry_id, action, seconds});
    const open = [...state.skipped, ...state.disputed];
    again = again.filter((n) => n > before && open.includes(n));
    await go(state.next ?? again[0] ?? null);
  });
}

function undo() {
  return alone(async () => {
    if (!state?.can_undo) return;
    state = await write("/api/undo", {});
    await go(state.n ?? state.next);
  });
}

function toggleMasks() {
  areMasksShown = !areMasksShown;
  stage?.show({masks: areMasksShown});
}

const KEYS = {
  ...Object.fromEntries(SAYS.map(([action, key]) => [key, () => say(action)])), u: undo, m: toggleMasks,
};

document.addEventListener("keydown", (event) => {
  const isOther = event.repeat || event.ctrlKey || event.metaKey || event.altKey;
  if (isOther || event.target instanceof HTMLInputElement) return;
  const work = reviewer && state ? KEYS[event.key.toLowerCase()] : undefined;
  if (!work) return;
  event.preventDefault();
  work();
});

function draw() {
  areMasksShown = true;
  stage = null;
  box.replaceChildren(bar(), trouble, item ? work() : end());
  shownAt = performance.now();
}

function bar() {
  const done = `${count(state.decided)} of ${count(state.total)} decided`;
  return el("header", {class: "bar"},
    el("h1", {}, "Review"), el("span", {class: "faint"}, reviewer),
    el("progress", {max: Math.max(state.total, 1), value: state.decided, "aria-label": done}),
    el("span", {role: "status"}, state.skipped.length ? `${done}, ${count(state.skipped.length)} skipped` : done),
    el("button", {type: "button", class: "quiet", onclick: undo, disabled: !state.can_undo}, "Undo ", key("u")));
}

function key(name) {
  return el("kbd", {}, name);
}

function work() {
  const {picture} = item;
  const look = {hatched: false, dashed: false, label: "", prompts: []};
  const mine = {...look, rle: item.rle, area: item.area, colors: [MAGENTA]};
  const others = item.others.map((other) => ({...look, rle: other.rle, area: Infinity, colors: []}));
  stage = new Stage(
    {width: picture.width, height: picture.height, url: picture.url, error: null, things: [mine, ...others],
      name: `${item.text}, in ${picture.key}`, prompts: []},
    {trouble: (errors) => (trouble.textContent = [...errors.values()].join("; "))},
  );
  return el("div", {class: "work", "data-n": String(item.n)}, stage.node, el("section", {},
    el("h2", {class: "what"}, said(item.text, LONGEST_TEXT)),
    el("div", {class: "says"}, SAYS.map(([action, name, label]) =>
      el("button", {type: "button", class: "quiet", "data-say": action, onclick: () => say(action)}, label, key(name))),
    el("button", {type: "button", class: "quiet", onclick: toggleMasks}, "Masks on and off", key("m"))),
    el("dl", {class: "facts"}, facts())));
}

function facts() {
  const rows = [
    ["why it is here", item.reason], ["relation", item.relation], ["labeler", item.labeler],
    ["score", number(item.score)], ["area", `${count(item.area)} px`], ["picture", item.picture.key],
  ];
  return [
    ...rows.filter(([, value]) => value)
      .map(([name, value]) => [el("dt", {}, name), el("dd", {}, said(value, LONGEST_TEXT))]),
    ...item.checks.map((check) => [el("dt", {}, said(check.name, LONGEST_TEXT)), el("dd", {class: check.verdict},
      check.value === null ? "does not apply" : `${number(check.value)}, limit ${number(check.limit)}`)]),
  ];
}

function number(value) {
  return typeof value === "number" ? String(Number(value.toPrecision(4))) : "–";
}

function lookAgain(places) {
  again = [...places];
  return go(again[0]);
}

function end() {
  const node = el("section", {}, el("h2", {}, state.total ? "Nothing is left." : "The queue is empty."));
  for (const kind of ["skipped", "disputed"]) {
    if (!state[kind].length) continue;
    node.append(el("p", {}, el("button", {type: "button", class: "quiet",
      onclick: () => alone(() => lookAgain(state[kind]))}, `Look at ${count(state[kind].length)} ${kind} again`)));
  }
  reach("/api/agreement").then((found) => node.append(figures(found)))
    .catch((error) => (trouble.textContent = error.message));
  return node;
}

function figures({reviewers, pairs}) {
  const share = (pair) => (pair.both ? percent(pair.same / pair.both) : "–");
  return el("div", {}, el("h3", {}, "Reviewers"), el("table", {class: "figures"},
    reviewers.map((one) => el("tr", {}, el("th", {scope: "row"}, one.name),
      el("td", {}, `${count(one.decided)} decided`),
      el("td", {}, Object.entries(one.actions).map(([action, times]) => `${count(times)} ${action}`).join(", "))))),
  pairs.length ? el("h3", {}, "Agreement") : null, el("table", {class: "figures"},
    pairs.map((pair) => el("tr", {}, el("th", {scope: "row"}, `${pair.first} and ${pair.second}`),
      el("td", {}, `the same on ${count(pair.same)} of ${count(pair.both)} (${share(pair)})`),
      el("td", {}, `Cohen's kappa ${pair.kappa === null ? "not defined" : pair.kappa.toFixed(3)}`)))));
}

function ask() {
  const input = el("input", {type: "text", name: "reviewer", required: true, maxlength: "64", "aria-label": "Your name",
    autocomplete: "username"});
  const form = el("form", {onsubmit: (event) => {
    event.preventDefault();
    alone(async () => {
      reviewer = input.value.trim();
      await begin();
      history.replaceState(null, "", `/?${new URLSearchParams({reviewer})}`);
    });
  }}, el("label", {}, "Who reviews? ", input), el("button", {type: "submit", class: "quiet"}, "Begin"));
  box.replaceChildren(el("header", {class: "bar"}, el("h1", {}, "Review")), trouble, form);
  input.focus();
}

if (reviewer) alone(() => begin().catch((error) => { ask(); throw error; }));
else ask();
