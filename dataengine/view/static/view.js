// The viewer: filters, a list of samples, and the card of the chosen one.

import {addressOf, ask, stateOf} from "./api.js";
import {renderCard} from "./card.js";
import {count, cut, el} from "./dom.js";
import {compared} from "./view_compare.js";
import {filterPanel, orderBox} from "./view_filters.js";
import {pager, quarantinePage} from "./view_quarantine.js";

const PAGE = 50;
const AGAIN_MS = 1200; // while rows are still being looked through
const KEYS = [["← →", "previous, next sample"], ["space", "masks on, off"], ["p", "prompts on, off"], ["r", "a random sample"],
  ["/", "search"], ["c", "compare side by side, where two datasets are open"], ["Esc", "let go of what is pinned"], ["?", "this list"]];

const root = document.getElementById("view");
let state = stateOf(location.search);
let datasets = [];
let page = {rows: [], offset: 0, total: 0, ready: 1};
let running = new AbortController(); // of the questions whose answers are still wanted
let current = null; // row number of the card
let asking = 0; // timer of the next question while rows are still being looked through

const search = el("input", {type: "search", placeholder: "Search texts and ids  ( / )", "aria-label": "search texts and ids",
  oninput: () => later(() => go({filters: {...state.filters, q: search.value || undefined}}, {keep: true}))});
const parts = {
  top: el("header", {class: "top"}), side: el("aside", {class: "left", "aria-label": "filters"}),
  list: el("section", {class: "list", "aria-label": "samples"}), main: el("main", {class: "detail-box", tabindex: "-1"}),
  trouble: el("p", {class: "trouble", role: "alert"}), help: help(),
};

async function start() {
  root.replaceChildren(parts.top, parts.trouble, el("div", {class: "columns"}, parts.side, parts.list, parts.main), parts.help);
  try {
    ({datasets} = await ask("/api/datasets"));
  } catch (error) {
    return trouble(error);
  }
  if (state.d >= datasets.length) state.d = 0;
  await show();
}

const dataset = () => datasets[state.d];
const edition = () => `v=${dataset().version.slice(0, 16)}`; // pictures with it are kept by the browser
const isPair = () => datasets.length === 2;

/** Change the state, write it into the address, and show it. */
function go(changes, {keep = false, replace = keep} = {}) {
  state = {...state, ...changes};
  if (changes.filters || changes.d !== undefined) Object.assign(state, {id: changes.id ?? null, n: null});
  history[replace ? "replaceState" : "pushState"](null, "", addressOf(state));
  return show({keep});
}

/** Show the state. keep: the search box is in use. */
async function show({keep = false} = {}) {
  running.abort();
  running = new AbortController();
  trouble(null);
  if (!keep) search.value = state.filters.q ?? "";
  const onSamples = state.tab === "samples";
  document.body.dataset.tab = state.tab;
  drawTop();
  if (!onSamples) {
    parts.side.replaceChildren();
    parts.list.replaceChildren();
    try {
      parts.main.replaceChildren(await quarantinePage(state.d, state.filters, (filters) => go({filters})));
    } catch (error) {
      trouble(error);
    }
    return;
  }
  drawFilters();
  try {
    if (state.id !== null || state.n !== null) {
      const data = await ask("/api/row", {d: state.d, ...(state.id !== null ? {id: state.id} : {n: state.n})}, running.signal);
      const isFirst = current !== data.number;
      current = data.number;
      if (isFirst || state.side) await drawCard(data);
      await load({around: data.number});
    } else {
      await load({offset: 0}, false);  // the card's picture is asked for before those of the list
      if (page.rows.length) await choose(page.rows[0], {replace: true});
      else drawNothing();
    }
  } catch (error) {
    trouble(error);
  }
}

/** Load a page of the list; while rows are still being looked through, again after a while. */
async function load(where, draws = true) {
  const signal = running.signal;
  const asked = {d: state.d, ...state.filters, limit: PAGE, ...where};
  page = await ask("/api/rows", asked, signal);
  if (draws) drawList();
  else delete parts.list.dataset.offset;
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
        ask("/api/rows", {d: state.d, ...state.filters, limit: PAGE, ...where}, signal), ask("/api/datasets", {}, signal)]);
      datasets = all.datasets;
      const hadNone = !page.rows.length;
      page = rows;
      drawList();
      if (!parts.side.contains(document.activeElement)) drawFilters();
      if (hadNone && page.rows.length && current === null) await choose(page.rows[0], {replace: true});
      if (page.ready < 1) again(signal, wanted);
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
  state = {...state, id: row.id, n: null};
  history[replace ? "replaceState" : "pushState"](null, "", addressOf(state));
  const asked = (current = row.number);
  const data = await ask("/api/row", {d: state.d, n: row.number}, running.signal);
  if (current !== asked) return;
  await drawCard(data);
  if (parts.list.dataset.offset === String(page.offset) && parts.list.querySelector(".row")) markCurrent();
  else drawList();
}

/** The next or the previous sample in the list's order. */
async function step(by) {
  if (state.tab !== "samples") return;
  const at = page.rows.findIndex((row) => row.number === current) + by;
  if (at < 0 && page.offset > 0) await load({offset: Math.max(0, page.offset - PAGE)});
  else if (at >= page.rows.length && page.offset + page.rows.length < page.total) await load({offset: page.offset + PAGE});
  else if (page.rows[at]) return choose(page.rows[at]);
  else return;
  await choose(page.rows[by > 0 ? 0 : page.rows.length - 1]);
}

async function random() {
  const {number} = await ask("/api/random", {d: state.d, ...state.filters}, running.signal);
  if (number === null) return;
  const data = await ask("/api/row", {d: state.d, n: number}, running.signal);
  state = {...state, id: data.row.sample_id, n: null};
  history.pushState(null, "", addressOf(state));
  current = number;
  await drawCard(data);
  await load({around: number});
}

// --- what is drawn -----------------------------------------------------------------------------------------------

function drawTop() {
  const tabs = [["samples", "Samples", dataset().samples], ["quarantine", "Quarantine", dataset().quarantined]].map(([tab, name, number]) =>
    el("button", {type: "button", class: "tab", "aria-current": state.tab === tab ? "page" : null, onclick: () => go({tab, filters: {}})},
      name, " ", el("span", {class: "faint"}, count(number))));
  const choice = datasets.length > 1
    ? el("select", {"aria-label": "dataset", onchange: (event) => go({d: Number(event.target.value), filters: state.filters})},
      datasets.map((other) => el("option", {value: other.d, selected: other.d === state.d}, cut(other.uri, 60)[0])))
    : el("span", {class: "uri", title: dataset().uri}, cut(dataset().uri, 60)[0]);
  const pair = isPair() && el("button", {type: "button", class: "toggle", "aria-pressed": String(state.side),
    title: "both datasets side by side (c)", onclick: () => go({side: !state.side})}, "Side by side");
  parts.top.replaceChildren(el("h1", {}, cut(dataset().name, 60)[0]), choice, el("nav", {class: "tabs", "aria-label": "views"}, tabs), pair || "",
    state.tab === "samples" ? search : "",
    state.tab === "samples" ? el("button", {type: "button", class: "quiet", title: "r", onclick: () => random().catch(trouble)}, "Random") : "",
    el("button", {type: "button", class: "quiet", title: "light or dark", onclick: turnTheme}, "◐"),
    el("button", {type: "button", class: "quiet", title: "keys", "aria-label": "keys", onclick: () => parts.help.showModal()}, "?"));
}

function drawFilters() {
  const open = parts.side.querySelector("details")?.open;
  const panel = filterPanel(dataset(), isPair(), state.filters, (filters) => go({filters}));
  if (open !== undefined) panel.open = open;
  parts.side.replaceChildren(panel);
}

function drawList() {
  const items = page.rows.map((row) => el("li", {}, el("button", {
    type: "button", class: "row", "data-number": row.number, onclick: () => choose(row).catch(trouble),
  },
  el("img", {src: `/api/picture?d=${state.d}&n=${row.number}&px=160&${edition()}`, alt: "", loading: "lazy", fetchpriority: "low", width: "64", height: "64",
    onerror: (event) => event.target.classList.add("none")}),
  el("span", {class: "what"}, el("span", {class: "text"}, row.error ?? (row.text || row.id)), el("span", {class: "faint"},
    [row.variant ? `${row.task} ${row.variant}` : row.task, `${row.objects} object${row.objects === 1 ? "" : "s"}`,
      row.value !== null && row.value !== undefined && state.filters.sort && `${state.filters.sort} ${tidy(row.value)}`,
      row.change && row.change !== "same" && row.change].filter(Boolean).join(" · "))))));
  const looked = page.ready < 1 ? ` · ${Math.floor(100 * page.ready)} % looked through` : "";
  parts.list.replaceChildren(
    el("div", {class: "found", role: "status"}, `${count(page.total)} sample${page.total === 1 ? "" : "s"}${looked}`),
    orderBox(dataset(), isPair(), state.filters, (filters) => go({filters})),
    el("ol", {class: "rows", start: page.offset + 1}, items),
    pager(page.offset, page.rows.length, page.total, (offset) => load({offset}).catch(trouble)));
  parts.list.dataset.offset = page.offset;
  markCurrent();
}

/** Mark the card's sample in the list. */
function markCurrent() {
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

async function drawCard(data) {
  const linkOf = (d, id) => addressOf({...state, d, id, filters: {}, side: false});
  const node = state.side && isPair()
    ? await compared(data.row.sample_id, datasets, linkOf)
    : el("div", {class: "detail"}, renderCard(data, {href: linkOf(state.d, data.row.sample_id)}));
  const moves = el("nav", {class: "moves", "aria-label": "samples"},
    el("button", {type: "button", class: "quiet", title: "←", onclick: () => step(-1).catch(trouble)}, "← previous"),
    el("span", {class: "faint place"}, place()),
    el("button", {type: "button", class: "quiet", title: "→", onclick: () => step(1).catch(trouble)}, "next →"));
  parts.main.replaceChildren(moves, node);
  document.title = `${cut(data.row.sample_id, 80)[0]} · dataengine`;
  const next = page.rows[page.rows.findIndex((row) => row.number === data.number) + 1];
  if (next && data.picture) new Image().src = `/api/picture?d=${state.d}&n=${next.number}&${edition()}`;
}

/** Where the card's sample stands in the list. */
function place() {
  const at = page.rows.findIndex((row) => row.number === current);
  return at >= 0 ? `${count(page.offset + at + 1)} of ${count(page.total)}` : "";
}

function drawNothing() {
  current = null;
  drawList();
  const text = page.ready < 1 ? "Nothing yet; rows are still being looked through." : "No sample is like that.";
  parts.main.replaceChildren(el("p", {class: "faint empty"}, text));
}

/** Say what went wrong; without an error, what is known to be damaged. */
function trouble(error) {
  if (error?.name === "AbortError") return;
  const damaged = dataset()?.damaged ?? [];
  const known = damaged.length ? `${count(damaged.length)} shard${damaged.length === 1 ? "" : "s"} cannot be read: ${damaged[0].shard}: ${damaged[0].error}` : "";
  parts.trouble.textContent = cut(error ? error.message : known, 500)[0];
}

function help() {
  return el("dialog", {"aria-label": "keys"}, el("h2", {}, "Keys"), el("dl", {}, KEYS.map(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
    el("form", {method: "dialog"}, el("button", {class: "quiet", autofocus: true}, "Close")));
}

function turnTheme() {
  const isDark = getComputedStyle(document.documentElement).colorScheme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = isDark ? "light" : "dark";
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
  " ": () => cards().forEach((card) => card.toggleMasks?.()), p: () => cards().forEach((card) => card.togglePrompts?.()),
  "/": () => search.focus(), c: () => isPair() && go({side: !state.side}), "?": () => parts.help.showModal(),
};
const cards = () => parts.main.querySelectorAll(".card");

document.addEventListener("keydown", (event) => {
  const inField = event.target.closest("input:not([type=checkbox]), select, textarea, pre");
  const presses = event.key === " " && event.target.closest("input, button, summary, a");
  if (event.key === "Escape" && event.target === search) search.blur();
  if (inField || presses || event.ctrlKey || event.metaKey || event.altKey || parts.help.open || !ACTIONS[event.key]) return;
  event.preventDefault();
  Promise.resolve(ACTIONS[event.key]()).catch(trouble);
});
window.addEventListener("popstate", () => {
  state = stateOf(location.search);
  if (state.d >= datasets.length) state.d = 0;
  show();
});
start();
