// The viewer: filters, a list of samples, and the card of the chosen one.

import {addressOf, ask, stateOf} from "./api.js";
import {renderCard} from "./card.js";
import {count, cut, el, plural, tail} from "./dom.js";
import {compared} from "./view_compare.js";
import {filterPanel, orderBox} from "./view_filters.js";
import {pager, quarantinePage} from "./view_quarantine.js";

const PAGE = 50;
const AGAIN_MS = 1200; // while rows are still being looked through
const KEYS = [
  ["← →", "previous, next sample"], ["space", "masks on, off"], ["p", "prompts on, off"], ["r", "a random sample"],
  ["/", "search"], ["c", "compare side by side, where two datasets are open"], ["Esc", "let go of what is pinned"],
  ["?", "this list"],
];

const root = document.getElementById("view");
let state = stateOf(location.search);
let datasets = [];
let page = {rows: [], offset: 0, total: 0, ready: 1};
let drawn = null; // the page that the list shows
let current = null; // row number of the card
let picking = new AbortController(); // of the questions for what is chosen: a newer choice ends them
let listing = new AbortController(); // of those for the list: so does another page
let isTurning = false; // the next page is on its way to a step
let asking = 0; // timer of the next question while rows are still being looked through

const search = el("input", {type: "search", placeholder: "Search texts and ids  ( / )",
  "aria-label": "search texts and ids",
  oninput: () => later(() => go({filters: {...state.filters, q: search.value}}, {keep: true}))});
const parts = {
  top: el("header", {class: "top"}), side: el("aside", {class: "left", "aria-label": "filters"}),
  list: el("section", {class: "list", "aria-label": "samples"}),
  main: el("main", {class: "detail-box", tabindex: "-1"}),
  trouble: el("p", {class: "trouble", role: "alert"}), help: help(),
};

async function start() {
  root.replaceChildren(parts.trouble);
  try {
    ({datasets} = await ask("/api/datasets"));
  } catch (error) {
    return trouble(error);
  }
  const skip = el("button", {type: "button", class: "quiet skip", onclick: () => parts.main.focus()}, "To the sample");
  const columns = el("div", {class: "columns"}, parts.side, parts.list, parts.main);
  root.replaceChildren(skip, parts.top, parts.trouble, columns, parts.help);
  await restore();
}

/** Show what the address says. */
function restore() {
  state = stateOf(location.search);
  if (state.d >= datasets.length) state.d = 0;
  return show();
}

const dataset = () => datasets[state.d];
const edition = () => `v=${dataset().version.slice(0, 16)}`; // pictures with it are kept by the browser
const isPair = () => datasets.length === 2;

/** Change the state, write it into the address, and show it. keep: the search box is in use. */
function go(changes, {keep = false} = {}) {
  state = {...state, ...changes};
  state.filters = Object.fromEntries(Object.entries(state.filters).filter(([, value]) => value?.length)); // empty: none
  if (changes.filters || changes.d !== undefined) Object.assign(state, {id: null, n: null});
  remember(keep);
  return show({keep});
}

function remember(replace) {
  history[replace ? "replaceState" : "pushState"](null, "", addressOf(state));
}

/** Something is chosen: what was asked for before is no longer wanted. Gives the signal that ends its questions. */
function begin() {
  picking.abort();
  picking = new AbortController();
  trouble(null);
  return picking.signal;
}

/** Show the state. */
async function show({keep = false} = {}) {
  const signal = begin();
  listing.abort();
  document.body.dataset.tab = state.tab;
  if (!keep) {
    search.value = state.filters.q ?? "";
    drawTop();
  }
  try {
    await (state.tab === "samples" ? showSamples(signal) : showQuarantine(signal));
  } catch (error) {
    trouble(error);
  }
}

async function showQuarantine(signal) {
  const node = await quarantinePage(state.d, state.filters, (filters) => go({filters}), signal);
  redraw(parts.main, node);
  document.title = "Quarantine · dataengine";
  scrollTo(0, 0);
}

async function showSamples(signal) {
  drawFilters();
  if (state.id === null && state.n === null) {
    await load({offset: 0}, false); // the card's picture is asked for before those of the list
    return page.rows.length ? choose(page.rows[0], {replace: true}) : drawNothing();
  }
  try {
    await present(state.id !== null ? {id: state.id} : {n: state.n}, signal);
  } catch (error) {
    if (!signal.aborted) await load({offset: 0});
    throw error;
  }
  await load({around: current});
}

/** Ask for a sample and draw its card. */
async function present(asked, signal) {
  try {
    const data = await ask("/api/row", {d: state.d, ...asked}, signal);
    current = data.number;
    Object.assign(state, {id: data.row.sample_id, n: null});
    await drawCard(data, signal);
  } catch (error) {
    if (!signal.aborted) drawMain(el("p", {class: "faint empty"}, "This sample cannot be shown."));
    throw error;
  }
}

/** Load a page of the list; while rows are still being looked through, again after a while. */
async function load(where, draws = true) {
  listing.abort();
  listing = new AbortController();
  const {signal} = listing;
  page = await ask("/api/rows", {d: state.d, ...state.filters, limit: PAGE, ...where}, signal);
  if (draws) drawList();
  if (page.ready < 1) again(signal, where.around);
}

/** Ask for the list again after a while: the same page, or the one that holds the wanted row until that is found. */
function again(signal, wanted) {
  clearTimeout(asking);
  asking = setTimeout(async () => {
    if (signal.aborted) return;
    const where = isListed(wanted) ? {offset: page.offset} : {around: wanted};
    try {
      const [rows, all] = await Promise.all([
        ask("/api/rows", {d: state.d, ...state.filters, limit: PAGE, ...where}, signal),
        ask("/api/datasets", {}, signal)]);
      datasets = all.datasets;
      const hadNone = !page.rows.length;
      page = rows;
      drawList();
      if (!parts.side.contains(document.activeElement)) drawFilters();
      if (page.ready < 1) again(signal, wanted);
      if (hadNone && page.rows.length && current === null) await choose(page.rows[0], {replace: true});
      else if (!page.rows.length) drawNothing();
    } catch (error) {
      trouble(error);
    }
  }, AGAIN_MS);
}

function isListed(number) {
  return number === undefined || page.rows.some((row) => row.number === number);
}

/** Show one row of the list. */
async function choose(row, {replace = false} = {}) {
  const signal = begin();
  Object.assign(state, {id: row.id, n: null});
  remember(replace);
  current = row.number;
  try {
    await present({n: row.number}, signal);
  } finally {
    if (!signal.aborted) markCurrent();
  }
}

/** The next or the previous sample in the list's order. */
async function step(by) {
  if (state.tab !== "samples" || isTurning) return;
  const at = page.rows.findIndex((row) => row.number === current) + by;
  if (page.rows[at]) return choose(page.rows[at]);
  const offset = by > 0 ? page.offset + page.rows.length : Math.max(0, page.offset - PAGE);
  if (offset === page.offset || offset >= page.total) return;
  isTurning = true;
  try {
    await load({offset});
  } finally {
    isTurning = false;
  }
  await choose(page.rows.at(by > 0 ? 0 : -1));
}

async function random() {
  if (state.tab !== "samples") return;
  const signal = begin();
  const {number} = await ask("/api/random", {d: state.d, ...state.filters}, signal);
  if (number === null) throw new Error("No sample is like that.");
  await present({n: number}, signal);
  remember(false);
  await load({around: number});
}

// --- what is drawn -----------------------------------------------------------------------------------------------

/** Draw a part anew; the control that had the focus has it again. */
function redraw(part, ...nodes) {
  const name = part.contains(document.activeElement) && nameOf(document.activeElement);
  part.replaceChildren(...nodes);
  const controls = name ? [...part.querySelectorAll("button, input, select, summary")] : [];
  controls.find((node) => nameOf(node) === name)?.focus({preventScroll: true});
}

function nameOf(node) {
  const label = node.getAttribute("aria-label") || node.title || node.value || node.textContent;
  return [node.tagName, node.closest("[data-filter]")?.dataset.filter, label].join(" ");
}

function drawTop() {
  const {uri, name, samples, quarantined} = dataset();
  const quiet = (text, label, onclick) => el("button", {type: "button", class: "quiet", title: label,
    "aria-label": label, onclick}, text);
  const counts = [["samples", "Samples", samples], ["quarantine", "Quarantine", quarantined]];
  const tabs = counts.map(([tab, title, number]) => el("button",
    {type: "button", class: "tab", "aria-current": state.tab === tab ? "page" : null, onclick: () => go({tab})},
    title, " ", el("span", {class: "faint"}, count(number))));
  const choice = datasets.length > 1
    ? el("select", {"aria-label": "dataset", title: uri, onchange: (event) => go({d: Number(event.target.value)})},
      datasets.map((other) => el("option", {value: other.d, selected: other.d === state.d}, tail(other.uri, 60))))
    : el("span", {class: "uri", title: uri}, tail(uri, 60));
  const onSamples = state.tab === "samples";
  redraw(parts.top, ...[
    el("h1", {}, cut(name, 60)[0]), choice, el("nav", {class: "tabs", "aria-label": "views"}, tabs),
    onSamples && isPair() && el("button", {type: "button", class: "toggle", "aria-pressed": String(state.side),
      title: "both datasets side by side (c)", onclick: () => go({side: !state.side})}, "Side by side"),
    onSamples && search, onSamples && quiet("Random", "a random sample (r)", () => random().catch(trouble)),
    quiet("◐", "light or dark", turnTheme), quiet("?", "keys (?)", () => parts.help.showModal()),
  ].filter(Boolean));
}

function drawFilters() {
  const open = parts.side.querySelector("details")?.open;
  const panel = filterPanel(dataset(), isPair(), state.filters, (filters) => go({filters}));
  if (open !== undefined) panel.open = open;
  redraw(parts.side, panel);
}

function drawList() {
  const isNew = drawn?.offset !== page.offset;
  drawn = page;
  const looked = page.ready < 1 ? ` · ${Math.floor(100 * page.ready)} % looked through` : "";
  redraw(parts.list,
    el("div", {class: "found", role: "status"}, `${count(page.total)} sample${plural(page.total)}${looked}`),
    orderBox(dataset(), isPair(), state.filters, (filters) => go({filters})),
    el("ol", {class: "rows", start: page.offset + 1}, page.rows.map((row) => el("li", {}, rowButton(row)))),
    pager(page.offset, PAGE, page.total, (offset) => load({offset}).catch(trouble)));
  if (isNew) parts.list.scrollTop = 0;
  markCurrent();
}

function rowButton(row) {
  const {sort} = state.filters;
  const facts = [
    cut(row.variant ? `${row.task} ${row.variant}` : row.task, 60)[0], `${row.objects} object${plural(row.objects)}`,
    sort && row.value !== null && row.value !== undefined && `${sort} ${tidy(row.value)}`,
    row.change && row.change !== "same" && row.change,
  ];
  return el("button", {type: "button", class: "row", "data-number": row.number,
    onclick: () => choose(row).catch(trouble)},
    row.picture && el("img", {src: `/api/picture?d=${state.d}&n=${row.number}&px=160&${edition()}`, alt: "",
      loading: "lazy", fetchpriority: "low", width: "64", height: "64",
      onerror: (event) => event.target.classList.add("none")}),
    el("span", {class: "what"}, el("span", {class: "text", dir: "auto"}, row.error ?? (row.text || row.id)),
      el("span", {class: "faint"}, facts.filter(Boolean).join(" · "))));
}

/** Mark the card's sample in the list, which is drawn where it shows another page. */
function markCurrent() {
  if (drawn !== page) return drawList();
  for (const row of parts.list.querySelectorAll(".row")) {
    const isMine = Number(row.dataset.number) === current;
    isMine ? row.setAttribute("aria-current", "true") : row.removeAttribute("aria-current");
    if (isMine) reveal(row);
  }
  parts.main.querySelector(".place")?.replaceChildren(place());
}

/** Scroll the list, and nothing else, until a row of it is seen. */
function reveal(row) {
  const mine = row.getBoundingClientRect(), list = parts.list.getBoundingClientRect();
  if (mine.top < list.top) parts.list.scrollTop += mine.top - list.top - 8;
  else if (mine.bottom > list.bottom) parts.list.scrollTop += mine.bottom - list.bottom + 8;
}

async function drawCard(data, signal) {
  const linkOf = (d, id) => addressOf({...state, d, id, filters: {}, side: false});
  drawMain(state.side && isPair()
    ? await compared(data.row.sample_id, datasets, linkOf, signal)
    : el("div", {class: "detail"}, renderCard(data, {href: linkOf(state.d, data.row.sample_id)})));
  document.title = `${cut(data.row.sample_id, 80)[0]} · dataengine`;
  const next = page.rows[page.rows.findIndex((row) => row.number === data.number) + 1];
  if (next && data.picture) new Image().src = `/api/picture?d=${state.d}&n=${next.number}&${edition()}`;
}

function drawMain(node) {
  const move = (text, key, by) => el("button", {type: "button", class: "quiet", title: key,
    onclick: () => step(by).catch(trouble)}, text);
  redraw(parts.main, el("nav", {class: "moves", "aria-label": "turn samples"}, move("← previous", "←", -1),
    el("span", {class: "faint place"}, place()), move("next →", "→", 1)), node);
}

/** Where the card's sample stands in the list. */
function place() {
  const at = page.rows.findIndex((row) => row.number === current);
  return at >= 0 ? `${count(page.offset + at + 1)} of ${count(page.total)}` : "";
}

function drawNothing() {
  current = null;
  document.title = "dataengine view";
  drawList();
  const text = page.ready < 1 ? "Nothing yet; rows are still being looked through." : "No sample is like that.";
  parts.main.replaceChildren(el("p", {class: "faint empty"}, text));
}

/** Say what went wrong; without an error, what is known to be damaged. */
function trouble(error) {
  if (error?.name === "AbortError") return;
  const damaged = dataset()?.damaged ?? [];
  const known = damaged.length > 0 &&
    `${count(damaged.length)} shard${plural(damaged.length)} cannot be read: ${damaged[0].shard}: ${damaged[0].error}`;
  parts.trouble.textContent = cut(error ? error.message : known || "", 500)[0];
}

function help() {
  return el("dialog", {"aria-label": "keys"}, el("h2", {}, "Keys"),
    el("dl", {}, KEYS.map(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
    el("form", {method: "dialog"}, el("button", {class: "quiet", autofocus: true}, "Close")));
}

function turnTheme() {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  wearTheme(isDark ? "light" : "dark");
}

/** Light or dark, as chosen now or, without `chosen`, before; a browser that stores nothing forgets it. */
function wearTheme(chosen) {
  try {
    if (chosen) localStorage.setItem("theme", chosen);
    chosen ??= localStorage.getItem("theme");
  } catch {
    // nothing was stored
  }
  document.documentElement.dataset.theme = chosen ?? "";
}

function tidy(number) {
  return Number.isInteger(number) ? count(number) : number.toPrecision(4);
}

let waiting = 0;
function later(work) {
  clearTimeout(waiting);
  waiting = setTimeout(() => Promise.resolve(work()).catch(trouble), 250);
}

const ACTIONS = {
  ArrowRight: () => step(1), ArrowLeft: () => step(-1), r: random,
  " ": () => cards().forEach((card) => card.toggleMasks?.()),
  p: () => cards().forEach((card) => card.togglePrompts?.()),
  c: () => isPair() && state.tab === "samples" && go({side: !state.side}),
  "/": () => search.focus(), "?": () => parts.help.showModal(),
};
const cards = () => parts.main.querySelectorAll(".card");

document.addEventListener("keydown", (event) => {
  const inField = event.target.closest("input:not([type=checkbox]), select, textarea, pre");
  const presses = event.key === " " && event.target.closest("input, button, summary, a");
  if (event.key === "Escape" && event.target === search) search.blur();
  if (inField || presses || event.ctrlKey || event.metaKey || event.altKey || parts.help.open) return;
  if (!ACTIONS[event.key]) return;
  event.preventDefault();
  Promise.resolve(ACTIONS[event.key]()).catch(trouble);
});
window.addEventListener("popstate", restore);
wearTheme();
start();
