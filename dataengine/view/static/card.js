// The sample card: picture, masks, prompts and conversation of one sample, linked to each other.

import {copyButton, count, cut, el, percent, plural, pressOnEnter, said, svg} from "./dom.js";
import {colorsOf, css, tagsOf} from "./look.js";
import {Stage} from "./stage.js";
import {talk} from "./talk.js";

const KINDS = ["point", "scribble", "box", "mask"];
const ICONS = { // of prompts, 16 x 16
  point: [["circle", {cx: 8, cy: 8, r: 5.5}], ["circle", {cx: 8, cy: 8, r: 2, class: "full"}]],
  scribble: [["path", {d: "M2 11C5 2 7 4 8 8s3 7 6-2"}]],
  box: [["rect", {x: 2.5, y: 3.5, width: 11, height: 9}]],
  mask: [["path", {d: "M8 2.5c4 0 6 2.5 5.5 6S11 13.5 8 13.5 2 12 2.5 8.5 4 2.5 8 2.5z", class: "dashes"}]],
};
const FEW = 4; // regions whose prompts are all drawn at first; of more only one kind is
const MOST_LISTED = 300, MOST_REFERENCES = 60, MOST_TROUBLES = 5;

const pinnedCards = new Set();
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const card of [...pinnedCards]) card.unpin();
});

/**
 * @param {object} data see dataengine/view/rows.py, `card_data`
 * @param {object} options {href: link to the sample or null, prompts: kinds shown at first or null for as many as are
 *   readable}
 * @returns {HTMLElement} with methods `toggleMasks()` and `togglePrompts()`
 */
export function renderCard(data, options = {}) {
  return new Card(data, options).node;
}

class Card {
  constructor(data, options) {
    this.data = data;
    this.row = data.row;
    this.colors = colorsOf(this.row.conditions);
    this.tags = tagsOf(this.row.conditions);
    this.hovered = this.focused = this.pinned = null; // {object} or {condition} or {seg}, or null
    this.troubles = new Map();
    this.#link();
    this.kinds = this.#kinds();
    this.firstKinds = options.prompts ?? (this.shownBy.size > FEW ? this.kinds.slice(0, 1) : this.kinds);
    this.listed = new Map();
    this.shots = new Map();
    this.stages = [];
    this.trouble = el("div", {class: "trouble", role: "status"});
    this.stage = this.row.width > 0 && this.row.height > 0 && (this.row.image || this.row.objects.length)
      ? this.#stage() : null;
    this.talk = talk(this.row, this.colors, this.tags, {
      condition: (number) => this.#listeners({condition: number}),
      seg: (ordinal) => this.#listeners({seg: ordinal}),
    });
    const isBare = !this.row.objects.length && !this.row.conditions.length; // it says one thing only
    this.about = el("div", {class: `about ${isBare ? "bare" : this.kinds.length ? "roomy" : ""}`,
      "aria-live": "polite"});
    this.node = this.#node(options);
    this.node.toggleMasks = () => this.maskButton?.click();
    this.node.togglePrompts = () => this.promptButtons?.forEach((button) => button.click());
    this.#say(null);
  }

  unpin() {
    this.#pin(null);
  }

  /** Which objects, conditions and references belong together. */
  #link() {
    const {objects, conditions, references} = this.row;
    this.askers = objects.map(() => []); // object -> conditions that ask for it
    this.askedBy = new Map(); // reference -> the condition that it shows
    this.shownBy = new Map(); // object that shows a region -> its conditions
    conditions.forEach((condition, number) => {
      for (const index of condition.objects) this.askers[index]?.push(number);
      const {exemplar} = condition;
      if (objects[exemplar]) this.shownBy.set(exemplar, [...(this.shownBy.get(exemplar) ?? []), number]);
      for (const index of shotsOf(condition)) {
        if (references[index] && !this.askedBy.has(index)) this.askedBy.set(index, number);
      }
    });
    const origins = new Set(objects.map((object) => object.lineage?.origin));
    this.isMixed = origins.size > 1;
    this.isModelled = [...origins].some((origin) => origin && origin !== "human");
  }

  /** Kinds of prompts that are drawn anywhere in the card. */
  #kinds() {
    const there = new Set();
    const shown = [...this.shownBy.keys()].map((index) => this.row.objects[index]);
    for (const thing of [...shown, ...this.row.references]) {
      for (const prompt of thing.prompts) if (prompt.status !== "none") there.add(prompt.kind);
    }
    return KINDS.filter((kind) => there.has(kind));
  }

  #stage() {
    const {row, data} = this;
    const things = row.objects.map((object, index) => {
      const asking = this.askers[index].length ? this.askers[index] : (this.shownBy.get(index) ?? []);
      return {
        rle: object.rle, area: object.area, hatched: object.crowd,
        dashed: this.isMixed && object.lineage?.origin !== "human",
        colors: asking.filter((number) => this.colors.has(number)).map((number) => this.colors.get(number)),
        label: asking.map((number) => this.tags.get(number)).filter(Boolean).slice(0, 4).join(" "),
        prompts: this.shownBy.has(index) ? object.prompts : [],
      };
    });
    if (row.ignore) {
      things.push({rle: row.ignore, area: Infinity, hatched: true, crossed: true, colors: [], label: "", prompts: []});
    }
    const what = (index) => (row.objects[index] ? {object: index} : null);
    return this.#newStage({
      width: row.width, height: row.height, url: data.picture, error: data.picture_error, things,
      name: `${row.width} by ${row.height} pixels, ${row.objects.length} masks`,
    }, (index) => (row.objects[index] ? `object ${index + 1}` : "ignored pixels"), {
      hover: (index) => this.#over(what(index)),
      pick: (index) => this.#pin(what(index)),
    });
  }

  #newStage(view, nameOf, on = {}) {
    const trouble = (messages) => this.#complain([...messages].map(([index, message]) =>
      `${nameOf(index)}: ${message}`));
    const stage = new Stage({...view, prompts: this.firstKinds}, {...on, trouble});
    this.stages.push(stage);
    return stage;
  }

  /** What is wrong with masks, told beside the picture. */
  #complain(messages) {
    for (const message of messages) this.troubles.set(message, el("p", {}, message));
    const shown = [...this.troubles.values()].slice(0, MOST_TROUBLES);
    const left = this.troubles.size - shown.length;
    this.trouble.replaceChildren(...shown, ...(left > 0 ? [`and ${count(left)} more`] : []));
  }

  #listeners(what) {
    const isMouse = (event) => event.pointerType !== "touch"; // a finger's tap pins, and hovers over nothing
    return {
      onpointerenter: (event) => isMouse(event) && this.#over(what),
      onpointerleave: (event) => isMouse(event) && this.#over(null),
      onfocus: (event) => event.currentTarget.matches(":focus-visible") && this.#focus(what),
      onblur: () => this.focused && this.#focus(null),
      onclick: () => this.#pin(what),
    };
  }

  #over(what) {
    this.hovered = what;
    this.#light(what ?? this.focused ?? this.pinned);
  }

  #focus(what) {
    this.focused = what;
    this.#light(this.hovered ?? what ?? this.pinned);
  }

  /** Keep something lit; once more, or nothing, lets it go. */
  #pin(what) {
    const isSame = what !== null && JSON.stringify(what) === JSON.stringify(this.pinned);
    this.pinned = isSame ? null : what;
    if (this.pinned) pinnedCards.add(this);
    else pinnedCards.delete(this);
    for (const card of [...pinnedCards]) if (!card.node.isConnected) pinnedCards.delete(card);
    press(this.talk.spans, this.pinned?.condition);
    press(this.talk.segs, this.pinned?.seg);
    press(this.listed, this.pinned?.object);
    for (const [index, node] of this.shots) {
      const isPinned = this.pinned?.condition !== undefined && this.askedBy.get(index) === this.pinned.condition;
      node.setAttribute("aria-pressed", String(isPinned));
    }
    this.node.classList.toggle("pinned", this.pinned !== null);
    this.#light(this.pinned ?? (isSame ? null : this.hovered));
  }

  /** Light what belongs together: an object and its conditions, a condition and its objects and prompt. */
  #light(what) {
    const conditions = new Set(), objects = new Set(), segs = new Set(), references = new Set();
    if (what?.object !== undefined) {
      objects.add(what.object);
      const showing = this.shownBy.get(what.object) ?? [];
      for (const number of [...this.askers[what.object], ...showing]) conditions.add(number);
    }
    if (what?.condition !== undefined) conditions.add(what.condition);
    if (what?.seg !== undefined) {
      this.row.conditions.forEach((condition, number) => condition.seg === what.seg && conditions.add(number));
    }
    for (const number of conditions) {
      const condition = this.row.conditions[number];
      segs.add(condition.seg);
      for (const index of shotsOf(condition)) references.add(index);
      if (what.object !== undefined) continue;
      for (const index of condition.objects) objects.add(index);
      if (condition.exemplar >= 0) objects.add(condition.exemplar);
    }
    mark(this.talk.spans, conditions);
    mark(this.talk.segs, segs);
    mark(this.listed, objects);
    mark(this.shots, references);
    this.stage?.light(objects, this.colors.get(what?.condition));
    this.#say(what);
  }

  #say(what) {
    const {row} = this;
    let parts;
    if (what?.object !== undefined) parts = this.#aboutObject(row.objects[what.object], what.object);
    else if (what?.condition !== undefined) parts = this.#aboutCondition(what.condition);
    else if (what?.seg !== undefined) parts = this.#aboutSeg(what.seg);
    else parts = this.#legend();
    this.about.replaceChildren(...parts.filter(Boolean));
    this.about.scrollTop = 0;
  }

  #aboutObject(object, index) {
    const share = object.area / Math.max(this.row.width * this.row.height, 1);
    return [
      this.#swatch(this.askers[index][0]), el("strong", {}, said(this.#nameOf(object, index), 80)),
      ` · ${count(object.area)} px, ${percent(share)} of the picture`,
      object.crowd && " · crowd, serves no condition", " · annotation ", said(object.annotation_id, 40),
      ...lineageParts(object.lineage),
      object.prompts.length > 0 && el("div", {}, object.prompts.slice(0, 12).map(promptChip)),
    ];
  }

  #aboutCondition(number) {
    const condition = this.row.conditions[number];
    const objects = condition.objects.length;
    const example = this.row.objects[condition.exemplar] ?? this.row.references[condition.reference];
    return [
      this.#swatch(number), el("strong", {}, said(condition.text || condition.kind, 160)),
      ` · ${condition.kind === "region" ? "region" : "phrase"} · `,
      objects ? `${count(objects)} object${plural(objects)}` : "nothing to be found",
      example && " · shown by annotation ", example && said(example.annotation_id, 40),
      condition.exemplar < 0 && example && " of another picture",
      condition.explanation && el("div", {class: "faint"}, said(condition.explanation, 300)),
      example && el("div", {}, example.prompts.slice(0, 12).map(promptChip)),
    ];
  }

  #aboutSeg(ordinal) {
    const asked = this.row.conditions.filter((condition) => condition.seg === ordinal);
    const objects = new Set(asked.flatMap((condition) => condition.objects));
    return [el("strong", {}, `SEG ${ordinal + 1}`), ` answers ${count(asked.length)} condition${plural(asked.length)}`,
      ` with ${count(objects.size)} mask${plural(objects.size)}`];
  }

  /** What to do, and what marks on the picture mean. */
  #legend() {
    const {objects, conditions} = this.row;
    const keys = [
      [objects.some((object) => object.crowd), "hatched", "crowd"],
      [this.row.ignore, "hatched crossed", "ignored pixels"],
      [this.askers.some((asking, index) => !asking.length && !objects[index].crowd), "unasked", "not asked for"],
      [this.askers.some((asking) => asking.length > 1), "striped", "asked for more than once"],
      [this.isMixed, "dashes", "made by a model"],
      [conditions.some((condition) => !condition.objects.length), "none", "asked for, not there"],
    ];
    const hint = objects.length || conditions.length
      ? "Point at a mask or a phrase; click to keep it lit." : "Nothing is to be segmented here.";
    return [el("span", {class: "faint"}, hint), el("div", {class: "legend"}, keys.filter(([isThere]) => isThere)
      .map(([, key, text]) => el("span", {}, el("i", {class: `key ${key}`}), text)))];
  }

  #swatch(number) {
    return this.colors.has(number) && el("i", {class: "swatch", "--hue": css(this.colors.get(number))});
  }

  #category(id) {
    return id >= 0 ? (Object.hasOwn(this.data.categories, id) ? this.data.categories[id] : `category ${id}`) : "";
  }

  #nameOf(object, index) {
    return this.#category(object.category_id) || this.row.conditions[this.askers[index][0]]?.text || "object";
  }

  #node(options) {
    const {row, data} = this;
    const modelled = row.objects.filter((object) => object.lineage && object.lineage.origin !== "human").length;
    const facts = [
      `row ${count(data.number)}`, row.width > 0 && `${row.width} × ${row.height} px`,
      row.objects.length > 0 && `${count(row.objects.length)} object${plural(row.objects.length)}`,
      modelled > 0 && `${count(modelled)} by a model`,
      ["licence: ", said(row.license?.name || row.license?.url || "not stated", 80)],
    ].filter(Boolean);
    const head = el("header", {},
      el("span", {class: "badge"},
        cut(row.variant ? `${row.task} · ${row.variant}`.replaceAll("_", " ") : row.task, 60)[0]),
      el(options.href ? "a" : "span", {class: "id", href: options.href ?? null}, said(row.sample_id, 300)),
      el("span", {class: "facts"}, facts.map((fact, at) => [at > 0 && " · ", fact])));
    const figure = this.stage && el("figure", {}, el("div", {class: "pane"}, this.stage.node),
      el("div", {class: "under"}, this.#controls(), this.about, this.trouble, this.#objects()));
    const words = el("div", {class: "words"}, this.talk.node, this.#references(), this.#details());
    return el("article", {class: `card ${this.stage ? "" : "plain"}`, "data-id": row.sample_id}, head,
      el("div", {class: "body"}, figure, words, !this.stage && this.trouble));
  }

  #controls() {
    const {objects} = this.row;
    this.maskButton = objects.length > 0 && toggle("Masks", true, (on) => this.stage.show({masks: on}),
      "shows and hides masks (space)");
    const shown = new Set(this.firstKinds);
    this.promptButtons = this.kinds.map((kind) => toggle([icon(kind), kind], shown.has(kind), (on) => {
      on ? shown.add(kind) : shown.delete(kind);
      for (const stage of this.stages) stage.show({prompts: shown});
    }, `shows and hides ${kind} prompts; those of what is lit are always shown`));
    const tint = objects.length > 0 && el("input", {type: "range", min: "0", max: "2", step: "0.1", value: "1",
      "aria-label": "opacity of masks",
      title: "opacity of masks", oninput: (event) => this.stage.show({tint: Number(event.target.value)})});
    return el("div", {class: "controls"}, this.maskButton, tint, this.#origins(),
      this.kinds.length > 0 && el("span", {class: "group", role: "group", "aria-label": "prompts"},
        this.promptButtons));
  }

  /** Ground truth, pseudo-labels, or both; only where both are there. */
  #origins() {
    if (!this.isMixed) return null;
    const groups = {
      both: () => true,
      "ground truth": (origin) => origin === "human",
      "pseudo-labels": (origin) => origin !== "human",
    };
    const buttons = Object.entries(groups).map(([name, test]) => {
      const button = el("button", {type: "button", class: "toggle", "aria-pressed": String(name === "both"),
        onclick: () => {
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        const things = new Set();
        this.row.objects.forEach((object, index) => test(object.lineage?.origin) && things.add(index));
        this.stage.show({things});
      }}, name);
      return button;
    });
    return el("span", {class: "group", role: "group", "aria-label": "whose masks"}, buttons);
  }

  /** All objects as buttons, made when they are asked for. */
  #objects() {
    const {objects} = this.row;
    if (!objects.length) return null;
    const list = el("ul");
    const left = objects.length - MOST_LISTED;
    const details = el("details", {class: "objects", ontoggle: () => {
      if (!details.open || list.childNodes.length) return;
      list.append(...objects.slice(0, MOST_LISTED).map((object, index) => el("li", {},
        this.#objectButton(object, index))));
      press(this.listed, this.pinned?.object);
    }}, el("summary", {}, `${count(objects.length)} object${plural(objects.length)}`), list,
    left > 0 && el("p", {class: "faint"}, `and ${count(left)} more`));
    return details;
  }

  #objectButton(object, index) {
    const score = object.lineage?.score;
    const button = el("button", {type: "button", class: "object", "aria-pressed": "false",
      ...this.#listeners({object: index})},
      this.#swatch(this.askers[index].find((number) => this.colors.has(number))) || el("i", {class: "swatch"}),
      el("span", {class: "name"}, said(this.#nameOf(object, index), 60)), object.crowd && el("em", {}, "crowd"),
      Number.isFinite(score) && el("em", {title: "score"}, String(Number(score.toPrecision(3)))),
      el("span", {class: "faint"}, `${count(object.area)} px`));
    this.listed.set(index, button);
    return button;
  }

  /** Examples in other pictures, those of a region together. */
  #references() {
    const {references} = this.row;
    if (!references.length) return null;
    const regions = new Map();
    references.slice(0, MOST_REFERENCES).forEach((reference, index) => {
      const asking = this.askedBy.get(index) ?? -1;
      regions.set(asking, [...(regions.get(asking) ?? []), this.#reference(reference, index, asking)]);
    });
    const left = references.length - MOST_REFERENCES;
    return el("section", {class: "references"}, el("h4", {}, "Shown in other pictures"),
      el("div", {}, [...regions.keys()].sort((a, b) => a - b).map((number) => regions.get(number))),
      left > 0 && el("p", {class: "faint"}, `and ${count(left)} more`));
  }

  #reference(reference, index, asking) {
    const shown = this.data.references[index] ?? {};
    const stage = reference.width > 0 && reference.height > 0 && this.#newStage({
      width: reference.width, height: reference.height, url: shown.picture, error: shown.picture_error,
      name: `an example in another picture, ${reference.prompts.length} prompts`,
      things: [{rle: reference.rle, area: 1, colors: this.colors.has(asking) ? [this.colors.get(asking)] : [],
        label: "",
        hatched: false, prompts: reference.prompts}],
    }, () => `reference ${index + 1}`);
    const name = this.#category(reference.category_id) || this.row.conditions[asking]?.text || "example";
    const isAsked = asking >= 0;
    const node = el("div", {class: "reference", ...(isAsked
      ? {role: "button", tabindex: "0", "aria-pressed": "false", onkeydown: pressOnEnter,
      ...this.#listeners({condition: asking})} : {})}, stage && stage.node,
    el("div", {class: "caption"}, this.#swatch(asking), this.tags.get(asking), el("b", {}, said(name, 60)),
      el("span", {class: "key-of", title: cut(reference.image_key, 300)[0]}, said(reference.image_key, 80))),
    el("div", {class: "chips"}, reference.prompts.slice(0, 12).map(promptChip)));
    this.shots.set(index, node);
    return node;
  }

  #details() {
    const text = () => JSON.stringify(this.row, null, 1);
    const box = el("pre", {tabindex: "0", "aria-label": "raw row"});
    const raw = el("details", {class: "raw", ontoggle: () => {
      if (raw.open && !box.textContent) box.textContent = text();
    }}, el("summary", {}, "Raw row"), copyButton("Copy JSON", text), box);
    const commands = this.data.commands.map(({label, command}) => el("div", {class: "command"},
      el("div", {class: "faint"}, label, copyButton("Copy", () => command)), el("code", {tabindex: "0"}, command)));
    return el("div", {class: "details"}, el("details", {}, el("summary", {}, "Where it comes from"), this.#origin()),
      el("details", {}, el("summary", {}, "Reproduce this sample"), commands), raw);
  }

  #origin() {
    const {license, provenance, source, split, image_key} = this.row;
    const facts = {
      source: `${source}, ${split}`, file: provenance?.file, record: provenance?.record, published: provenance?.url,
      builder: provenance && `${provenance.builder}, version ${provenance.version}, seed ${provenance.seed}`,
      picture: image_key, licence: [license?.name, license?.url].filter(Boolean).join(", "), shard: this.data.shard,
    };
    return el("dl", {}, Object.entries(facts).filter(([, value]) => value)
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, said(value, 1000)))));
  }
}

/** References that show a region. */
function shotsOf(condition) {
  return [condition.reference, ...(condition.shots ?? [])].filter((index) => index >= 0);
}

function toggle(label, on, change, title) {
  const button = el("button", {type: "button", class: "toggle", "aria-pressed": String(on), title, onclick: () => {
    const now = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(now));
    change(now);
  }}, label);
  return button;
}

function icon(kind) {
  const shapes = Object.hasOwn(ICONS, kind) ? ICONS[kind] : [];
  return svg("svg", {class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true"},
    shapes.map(([tag, at]) => svg(tag, at)));
}

/** A prompt in words: its kind, how much of it lies in its object, and in another. */
function promptChip(prompt) {
  const isNone = prompt.status === "none";
  const isAmbiguous = !isNone && prompt.other > prompt.inside;
  const who = prompt.version === 0 ? "the source's own" : `profile ${prompt.profile}, version ${prompt.version}`;
  const title = isNone
    ? who : `${percent(prompt.inside)} of it inside its object, ${percent(prompt.other)} in another; ${who}`;
  const name = `prompt ${isNone ? "none" : ""} ${isAmbiguous ? "ambiguous" : ""}`;
  return el("span", {class: name, title: cut(title, 200)[0]},
    icon(prompt.kind), el("b", {}, cut(prompt.kind, 20)[0]),
    el("span", {}, isNone ? "none" : `${percent(prompt.inside)} inside`),
    prompt.other > 0 && !isNone && el(isAmbiguous ? "em" : "span", {class: "other"},
      `${percent(prompt.other)} in another`),
    prompt.status === "fallback" && el("em", {}, "fallback"));
}

function lineageParts(lineage) {
  if (!lineage || lineage.origin === "human") return [];
  const number = (name, value) => Number.isFinite(value) && `${name} ${Number(value.toPrecision(3))}`;
  return [lineage.origin, lineage.labeler, lineage.revision, number("round", lineage.round),
    number("score", lineage.score),
    number("stability", lineage.stability), lineage.reviewer && `reviewed by ${lineage.reviewer}`]
    .filter(Boolean).flatMap((part, at) => [at ? ", " : " · ", said(part, 40)]);
}

function mark(nodes, lit) {
  for (const [key, node] of nodes) node.classList.toggle("lit", lit.has(key));
}

function press(nodes, pinned) {
  for (const [key, node] of nodes) node.setAttribute("aria-pressed", String(key === pinned));
}
