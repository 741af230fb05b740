// The sample card: picture, masks, prompts and conversation of one sample, linked to each other.

import {copyButton, count, cut, el, percent} from "./dom.js";
import {colorsOf, css, tagsOf} from "./look.js";
import {Stage} from "./stage.js";
import {talk} from "./talk.js";

const KINDS = ["point", "scribble", "box", "mask"];
const MOST_LISTED = 200;

/**
 * @param {object} data see dataengine/view/rows.py, `card_data`
 * @param {object} options {href: link to the sample or null, prompts: kinds shown at first or null for all}
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
    this.pinned = null;
    this.askers = this.row.objects.map(() => []); // object -> conditions that ask for it
    this.row.conditions.forEach((condition, number) => {
      for (const index of condition.objects) this.askers[index]?.push(number);
    });
    this.examples = new Set(this.row.conditions.map((condition) => condition.exemplar).filter((index) => index >= 0));
    this.stage = this.row.width > 0 && this.row.height > 0 && (this.row.image || this.row.objects.length)
      ? this.#stage() : null;
    this.talk = talk(this.row, this.colors, this.tags, {
      condition: (number) => this.#listeners({condition: number}),
      seg: (ordinal) => this.#listeners({seg: ordinal}),
    });
    this.about = el("div", {class: "about", "aria-live": "polite"});
    this.node = this.#node(options);
    this.node.toggleMasks = () => this.maskButton?.click();
    this.node.togglePrompts = () => this.promptButtons?.forEach((button) => button.click());
    this.#say(null);
  }

  #stage() {
    const {row, data} = this;
    const things = row.objects.map((object, index) => ({
      rle: object.rle, area: object.area, bbox: object.bbox, hatched: object.crowd,
      dashed: object.lineage?.origin !== "human" && this.#isMixed(),
      colors: this.askers[index].filter((number) => this.colors.has(number)).map((number) => this.colors.get(number)),
      label: this.askers[index].map((number) => this.tags.get(number)).filter(Boolean).join(" "),
      prompts: this.examples.has(index) ? object.prompts : [],
    }));
    if (row.ignore) things.push({rle: row.ignore, area: Infinity, hatched: true, colors: [], label: "", prompts: []});
    const name = `${row.width} by ${row.height} pixels, ${row.objects.length} masks`;
    const pick = (index) => index >= 0 && index < row.objects.length ? this.#pin({object: index}) : this.#pin(null);
    return new Stage({width: row.width, height: row.height, url: data.picture, error: data.picture_error, things, name},
      (index) => this.#over(index >= 0 && index < row.objects.length ? {object: index} : null), pick);
  }

  #isMixed() {
    return new Set(this.row.objects.map((object) => object.lineage?.origin)).size > 1;
  }

  #listeners(what) {
    return {
      onpointerenter: () => this.#over(what), onpointerleave: () => this.#over(null),
      onfocus: () => this.#over(what), onblur: () => this.#over(null),
      onclick: () => this.#pin(what),
    };
  }

  #over(what) {
    this.#light(what ?? this.pinned);
  }

  #pin(what) {
    this.pinned = what && JSON.stringify(what) === JSON.stringify(this.pinned) ? null : what;
    this.#light(this.pinned);
  }

  /** Light what belongs together: an object and its conditions, a condition and its objects and prompt. */
  #light(what) {
    const conditions = new Set(), objects = new Set(), segs = new Set(), references = new Set();
    if (what?.object !== undefined) {
      objects.add(what.object);
      for (const number of this.askers[what.object]) conditions.add(number);
      this.row.conditions.forEach((condition, number) => condition.exemplar === what.object && conditions.add(number));
    }
    if (what?.condition !== undefined) conditions.add(what.condition);
    if (what?.seg !== undefined) {
      this.row.conditions.forEach((condition, number) => condition.seg === what.seg && conditions.add(number));
    }
    if (what?.object === undefined) {
      for (const number of conditions) {
        const condition = this.row.conditions[number];
        for (const index of condition.objects) objects.add(index);
        if (what.condition !== undefined && condition.exemplar >= 0) objects.add(condition.exemplar);
        for (const index of [condition.reference, ...(condition.shots ?? [])]) if (index >= 0) references.add(index);
      }
    }
    for (const number of conditions) segs.add(this.row.conditions[number].seg);
    mark(this.talk.spans, conditions);
    mark(this.talk.segs, segs);
    mark(this.listed, objects);
    mark(this.shots, references);
    const pinned = this.pinned?.condition;
    for (const [number, node] of this.talk.spans) node.setAttribute("aria-pressed", String(number === pinned));
    this.stage?.light(objects);
    this.#say(what);
  }

  #say(what) {
    const {row} = this;
    if (what?.object !== undefined) this.about.replaceChildren(...this.#aboutObject(row.objects[what.object], what.object));
    else if (what?.condition !== undefined) this.about.replaceChildren(...this.#aboutCondition(row.conditions[what.condition]));
    else if (what?.seg !== undefined) {
      const asked = row.conditions.filter((condition) => condition.seg === what.seg);
      this.about.replaceChildren(el("strong", {}, `SEG ${what.seg + 1}`), ` answers ${asked.length} condition${plural(asked.length)}`);
    } else this.about.replaceChildren(el("span", {class: "faint"},
      row.objects.length ? "Point at a mask or a phrase; click to keep it." : "Nothing is to be segmented here."));
  }

  #aboutObject(object, index) {
    const names = this.askers[index].map((number) => this.row.conditions[number].text).filter(Boolean);
    const [name] = cut(this.#category(object.category_id) || names[0] || "object", 80);
    const share = object.area / Math.max(this.row.width * this.row.height, 1);
    return [
      el("strong", {}, name), ` · ${count(object.area)} px, ${percent(share)} of the picture`,
      object.crowd && " · crowd, serves no condition", ` · annotation ${cut(object.annotation_id, 40)[0]}`,
      this.#lineage(object.lineage), object.prompts.length > 0 && el("div", {}, object.prompts.map(promptChip)),
    ].filter(Boolean);
  }

  #aboutCondition(condition) {
    const objects = condition.objects.length;
    const example = condition.exemplar >= 0 ? this.row.objects[condition.exemplar]
      : condition.reference >= 0 ? this.row.references[condition.reference] : null;
    return [
      el("strong", {}, cut(condition.text || condition.kind, 160)[0]),
      ` · ${condition.kind} · ${objects ? `${objects} object${plural(objects)}` : "nothing to be found"}`,
      example && ` · shown by annotation ${cut(example.annotation_id, 40)[0]}${condition.exemplar < 0 ? " of another picture" : ""}`,
      condition.explanation && el("div", {class: "faint"}, cut(condition.explanation, 300)[0]),
      example && el("div", {}, example.prompts.map(promptChip)),
    ].filter(Boolean);
  }

  #category(id) {
    return id >= 0 ? (this.data.categories[id] ?? `category ${id}`) : "";
  }

  #lineage(lineage) {
    if (!lineage || lineage.origin === "human") return null;
    const parts = [lineage.origin, lineage.labeler, lineage.revision, lineage.round !== null && `round ${lineage.round}`,
      lineage.score !== null && `score ${lineage.score.toFixed(3)}`,
      lineage.stability !== null && `stability ${lineage.stability.toFixed(3)}`, lineage.reviewer && `reviewed by ${lineage.reviewer}`];
    return ` · ${parts.filter(Boolean).map((part) => cut(String(part), 40)[0]).join(", ")}`;
  }

  #node(options) {
    const {row, data} = this;
    const id = cut(row.sample_id, 300)[0];
    const head = el("header", {},
      el("span", {class: "badge"}, row.variant ? `${row.task} ${row.variant}` : row.task),
      el(options.href ? "a" : "span", {class: "id", href: options.href ?? null}, id),
      el("span", {class: "facts"}, [
        `row ${count(data.number)}`, row.width > 0 && `${row.width} × ${row.height} px`,
        `licence: ${cut(row.license?.name || row.license?.url || "not stated", 80)[0]}`,
      ].filter(Boolean).join(" · ")));
    const figure = this.stage && el("figure", {}, this.stage.node, this.#controls(), this.about, this.#errors(), this.#objects());
    const words = el("div", {class: "words"}, this.talk.node, this.#references(), this.#details());
    return el("article", {class: `card ${this.stage ? "" : "plain"}`, "data-id": row.sample_id}, head,
      el("div", {class: "body"}, figure, words));
  }

  #errors() {
    const found = [...new Set(this.stage.errors)];
    return found.length ? el("p", {class: "trouble"}, found.join("; ")) : null;
  }

  #controls() {
    this.maskButton = toggle("Masks", true, (on) => this.stage.show({masks: on}), "shows and hides masks (space)");
    const there = KINDS.filter((kind) => [...this.examples].some((index) =>
      this.row.objects[index]?.prompts.some((prompt) => prompt.kind === kind && prompt.status !== "none")));
    const shown = new Set(there);
    this.promptButtons = there.map((kind) => toggle(kind, true, (on) => {
      on ? shown.add(kind) : shown.delete(kind);
      this.stage.show({prompts: shown});
    }, `shows and hides ${kind} prompts`));
    const tint = el("input", {type: "range", min: "0", max: "2", step: "0.1", value: "1", "aria-label": "opacity of masks",
      oninput: (event) => this.stage.show({tint: Number(event.target.value)})});
    return el("div", {class: "controls"}, this.maskButton, tint, this.#origins(),
      there.length > 0 && el("span", {class: "group", role: "group", "aria-label": "prompts"}, this.promptButtons));
  }

  /** Ground truth, pseudo-labels, or both; only where both are there. */
  #origins() {
    if (!this.#isMixed()) return null;
    const groups = {both: () => true, "ground truth": (origin) => origin === "human", "pseudo-labels": (origin) => origin !== "human"};
    const buttons = Object.entries(groups).map(([name, test]) => {
      const button = el("button", {type: "button", class: "toggle", "aria-pressed": String(name === "both"), onclick: () => {
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        const things = new Set();
        this.row.objects.forEach((object, index) => test(object.lineage?.origin) && things.add(index));
        this.stage.show({things});
      }}, name);
      return button;
    });
    return el("span", {class: "group", role: "group", "aria-label": "whose masks"}, buttons);
  }

  #objects() {
    this.listed = new Map();
    const rows = this.row.objects.slice(0, MOST_LISTED).map((object, index) => {
      const color = this.colors.get(this.askers[index].find((number) => this.colors.has(number)));
      const best = object.prompts.filter((prompt) => prompt.status !== "none");
      const name = this.#category(object.category_id) || this.row.conditions[this.askers[index][0]]?.text || "object";
      const button = el("button", {type: "button", class: "object", "--hue": color ? css(color) : null, ...this.#listeners({object: index})},
        el("i", {class: "swatch"}), el("span", {class: "name"}, cut(name, 60)[0]), object.crowd && el("em", {}, "crowd"),
        object.lineage?.score != null && el("em", {}, object.lineage.score.toFixed(2)),
        el("span", {class: "faint"}, `${count(object.area)} px`, best.length > 0 && this.examples.has(index) && " · prompts"));
      this.listed.set(index, button);
      return el("li", {}, button);
    });
    const left = this.row.objects.length - rows.length;
    return rows.length ? el("details", {class: "objects"}, el("summary", {}, `${count(this.row.objects.length)} objects`),
      el("ul", {}, rows), left > 0 && el("p", {class: "faint"}, `and ${count(left)} more`)) : null;
  }

  #references() {
    this.shots = new Map();
    if (!this.row.references.length) return null;
    const figures = this.row.references.map((reference, index) => {
      const shown = this.data.references[index] ?? {};
      const asking = this.row.conditions.findIndex((condition) => condition.reference === index || condition.shots?.includes(index));
      const stage = new Stage({
        width: reference.width, height: reference.height, url: shown.picture, error: shown.picture_error,
        name: `an example in another picture, ${reference.prompts.length} prompts`,
        things: [{rle: reference.rle, area: 1, colors: this.colors.has(asking) ? [this.colors.get(asking)] : [], label: "",
          hatched: false, prompts: reference.prompts}],
      });
      const figure = el("figure", {class: "reference", ...(asking >= 0 ? this.#listeners({condition: asking}) : {})}, stage.node,
        el("figcaption", {}, `${this.#category(reference.category_id)} in ${cut(reference.image_key, 60)[0]}`,
          el("div", {}, reference.prompts.map(promptChip))));
      this.shots.set(index, figure);
      return figure;
    });
    return el("section", {class: "references"}, el("h4", {}, "Shown in other pictures"), el("div", {}, figures));
  }

  #details() {
    const text = () => JSON.stringify(this.row, null, 1);
    const box = el("pre", {tabindex: "0"});
    const raw = el("details", {class: "raw", ontoggle: () => {
      if (raw.open && !box.textContent) box.textContent = text();
    }}, el("summary", {}, "Raw row"), copyButton("Copy JSON", text), box);
    const commands = this.data.commands.map(({label, command}) => el("div", {class: "command"},
      el("span", {class: "faint"}, label), el("code", {tabindex: "0"}, command), copyButton("Copy", () => command)));
    return el("div", {class: "details"}, el("details", {}, el("summary", {}, "Reproduce this sample"), commands), raw);
  }
}

function toggle(label, on, change, title) {
  const button = el("button", {type: "button", class: "toggle", "aria-pressed": String(on), title, onclick: () => {
    const now = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(now));
    change(now);
  }}, label);
  return button;
}

function promptChip(prompt) {
  const inside = prompt.status === "none" ? "none" : `${percent(prompt.inside)} inside`;
  const other = prompt.other > 0 ? `, ${percent(prompt.other)} in another` : "";
  const who = prompt.version === 0 ? "the source's own" : `${prompt.profile} ${prompt.version}`;
  return el("span", {class: `prompt ${prompt.status}`, title: `${who}, ${prompt.status}`}, el("b", {}, prompt.kind), ` ${inside}${other}`);
}

function mark(nodes, lit) {
  for (const [key, node] of nodes ?? []) node.classList.toggle("lit", lit.has(key));
}

function plural(number) {
  return number === 1 ? "" : "s";
}
