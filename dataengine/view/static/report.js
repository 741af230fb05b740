// The report: what a dataset holds, how it was built, what was left out, and some of its samples.

import {renderCard} from "./card.js";
import {barTable, histogram, partBar} from "./charts.js";
import {copyButton, count, cut, el, percent, plural} from "./dom.js";
import {drawAll} from "./stage.js";

const TOP = 30; // categories drawn as bars
const FIRST = 12; // reasons shown before the others are asked for
const data = JSON.parse(document.getElementById("data").textContent);
const stats = data.stats;
const sections = [];

document.title = `${data.title} – dataengine report`;
part("composition", "Composition", composition);
part("categories", "Categories", categories);
part("objects", "Objects and masks", objects);
part("conversations", "Conversations", conversations);
part("prompts", "Prompts", prompts);
part("lineage", "Labels", lineage);
part("records", "Records", records);
part("mixture", "Mixture", mixture);
part("licences", "Licences", licences);
part("build", "Build", build);
part("samples", "Samples", samples);
document.getElementById("report").replaceWith(el("main", {class: "page"},
  head(), tiles(),
  el("nav", {class: "contents", "aria-label": "sections"}, 
    sections.map(({id, title}) => el("a", {href: `#${id}`}, title))),
  sections.map(({node}) => node)));
if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();

/** A section, where there is something to say; `make` gives its text and its nodes, or null. */
function part(id, title, make) {
  const made = make();
  if (!made) return;
  const [about, ...nodes] = made;
  sections.push({id, title, node: el("section", {class: "part", id, "aria-labelledby": `${id}-title`},
    el("h2", {id: `${id}-title`}, title), about && el("p", {class: "faint"}, about), nodes)});
}

function box(...nodes) {
  return el("div", {class: "box"}, nodes);
}

// --- head ------------------------------------------------------------------------------------------------------------

function head() {
  const {status, generator} = data;
  const prompts = generator.prompts?.profile;
  const facts = [
    ["version", el("code", {title: data.version}, data.version.slice(0, 16))],
    status?.updated && ["built", `${day(status.updated)}${status.state === "done" ? "" : ` (${status.state})`}`],
    ["recipe", data.title],
    ["seed", plainText(data.seed)],
    data.limit !== null && ["limit", `${plainText(data.limit)} pictures of each split`],
    prompts && ["prompts", `${prompts}${generator.prompts.version ? ` ${generator.prompts.version}` : ""}`],
    generator.dataengine && ["dataengine", generator.dataengine],
    data.replays && ["replays", el("code", {}, data.replays.slice(0, 16))],
  ].filter(Boolean);
  return el("header", {}, el("h1", {dir: "auto"}, data.title),
    data.description && el("p", {dir: "auto"}, data.description),
    el("ul", {class: "made"}, facts.map(([name, value]) =>
      el("li", {}, el("span", {class: "faint"}, `${name} `), value))));
}

function tiles() {
  const named = Object.values(stats.categories).flat();
  const used = named.filter((category) => category.objects > 0).length;
  const {pictures} = stats;
  const {embedded, by_reference: byReference, none} = pictures.samples;
  const stored = [["embedded", embedded], ["by reference", byReference], ["none", none]]
    .filter(([, number]) => number > 0);
  const [size, unit] = bytes(stats.bytes);
  const shown = [
    ["Samples", count(stats.samples), null],
    ["Pictures", count(pictures.count),
      stored.map(([name, number]) => stored.length > 1 ? `${name} in ${count(number)} samples` : name).join(", ")],
    ["Objects with masks", count(data.objects),
      stats.samples ? `${(data.objects / stats.samples).toFixed(1)} a sample` : null],
    ["Categories", count(used), used < named.length ? `of ${count(named.length)} have objects` : null],
    ["Shards", `${size} ${unit}`, `in ${count(data.shards)} file${plural(data.shards)}`],
    ["Quarantined", count(data.quarantine.total), "records"],
  ];
  return el("dl", {class: "tiles"}, shown.map(([name, value, about]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value, about && el("small", {}, about)))));
}

// --- what it holds ---------------------------------------------------------------------------------------------------

function composition() {
  const heads = ["task", "variant", "source", "split"].filter((key) => stats.by.some((row) => row[key]));
  const rows = stats.by.map((row) => ({labels: heads.map((key) => row[key] || "–"), value: row.samples}));
  const nodes = [box(barTable({caption: "samples by task, variant, source and split", heads, rows,
    unit: "samples", of: stats.samples}))];
  const sums = ["task", "source"].map((key) => [key, sumBy(stats.by, key)])
    .filter(([, sum]) => sum.length > 1 && sum.length < rows.length);
  if (sums.length) nodes.push(el("div", {class: "twin"}, sums.map(([name, sum]) => box(el("h4", {}, `By ${name}`),
    barTable({caption: `samples by ${name}`, heads: [name],
      rows: sum.map(([label, value]) => ({labels: [label], value})), unit: "samples", of: stats.samples})))));
  return ["Samples by task, variant, source and split.", nodes];
}

function sumBy(rows, key) {
  const sums = new Map();
  for (const row of rows) sums.set(row[key], (sums.get(row[key]) ?? 0) + row.samples);
  return [...sums].sort((a, b) => b[1] - a[1]);
}

function categories() {
  const sources = Object.entries(stats.categories).filter(([, rows]) => rows.length);
  if (!sources.length) return null;
  const place = el("div", {});
  const show = (index) => place.replaceChildren(...categoriesOf(sources[index][1]));
  const choice = sources.length > 1 && el("div", {class: "search"}, el("label", {}, "Source ",
    el("select", {onchange: (event) => show(event.target.selectedIndex)},
      sources.map(([name, rows]) => el("option", {}, `${name}, ${count(rows.length)} categories`)))));
  show(0);
  return ["How many objects each category has.", box(choice, place)];
}

function categoriesOf(rows) {
  const used = rows.filter((row) => row.objects > 0);
  const total = rows.reduce((sum, row) => sum + row.objects, 0);
  const top = used.slice(0, TOP).map((row) => ({labels: [row.name], value: row.objects}));
  const said = [
    used.length > TOP && `The ${TOP} most frequent of ${count(used.length)} categories that have objects.`,
    used.length < rows.length && `${count(rows.length - used.length)} of ${count(rows.length)} categories have none.`,
  ];
  return [
    used.length > 0 && barTable({
      caption: "objects of the most frequent categories", heads: ["category"], rows: top, unit: "objects", of: total}),
    el("p", {class: "faint"}, said.filter(Boolean).join(" ")),
    allCategories(rows, total),
  ].filter(Boolean);
}

function allCategories(rows, total) {
  const body = el("tbody", {});
  const found = el("span", {class: "faint", role: "status"});
  const show = (text) => {
    const shown = rows.filter((row) => row.name.toLowerCase().includes(text) || String(row.id) === text);
    found.textContent = `${count(shown.length)} of ${count(rows.length)}`;
    body.replaceChildren(...shown.map((row) => el("tr", {}, el("td", {class: "number"}, String(row.id)),
      el("th", {scope: "row", dir: "auto"}, row.name),
      el("td", {class: "number"}, count(row.objects)),
      el("td", {class: "number faint"}, percent(total ? row.objects / total : 0, 2)))));
  };
  const details = el("details", {ontoggle: () => details.open && !body.firstChild && show("")},
    el("summary", {}, `All ${count(rows.length)} categories`),
    el("div", {class: "search"}, el("input", {type: "search", placeholder: "name or id",
      "aria-label": "search categories",
      oninput: (event) => show(event.target.value.trim().toLowerCase())}), found),
    el("div", {class: "long"}, el("table", {}, el("thead", {},
      el("tr", {}, ["id", "category", "objects", "share"].map((name) =>
      el("th", {scope: "col", class: name === "category" ? null : "number"}, name)))), body)));
  return details;
}

function objects() {
  const area = stats.mask_area_px;
  if (!area.count) return null;
  const {pictures} = stats;
  const sizes = Object.entries(area.sizes_by_task).filter(([, sizes]) => Object.values(sizes).some(Boolean));
  return [`${count(area.count)} masks. Where several samples show a picture, its objects count in each of them.`,
    box(el("div", {class: "charts"},
      numbers("Objects a sample", stats.per_sample.objects, "objects", "samples"),
      numbers("Objects a picture", pictures.objects, "objects", "pictures"),
      numbers("Size of masks", area, "px", "masks", {log: true}),
      numbers("Longest side of pictures", pictures.longest_side_px, "px", "pictures"))),
    el("h3", {}, "Small, medium and large, as COCO has them"),
    box(sizes.map(([task, parts]) => el("div", {class: "of-task"}, el("h4", {}, task), partBar({
      label: `masks of ${task} by size`, unit: "masks", parts: [
        {name: "small", about: "below 32² px", value: parts.small},
        {name: "medium", about: "32² to 96² px", value: parts.medium},
        {name: "large", about: "above 96² px", value: parts.large}],
    }))))];
}

/** A histogram of whole numbers with their mean and quantiles; null where there are none. */
function numbers(title, found, unit, of, more = {}) {
  if (!found?.count || !found.histogram?.counts.length) return null;
  const {quantiles} = found;
  const mean = found.mean.toLocaleString("en-US", {maximumFractionDigits: found.mean < 100 ? 1 : 0});
  const about = `mean ${mean}, median ${count(quantiles["0.5"])}, ` +
    `95 % up to ${count(quantiles["0.95"])}, largest ${count(quantiles["1"])}`;
  return histogram({title, about, ...found.histogram, unit, of, ...more});
}

function conversations() {
  const {tokens, turns, conditions} = stats.per_sample;
  if (!stats.samples) return null;
  return [`Lengths are counted in ${tokens.unit}, over all turns of a sample.`, box(el("div", {class: "charts"},
    numbers("Length of conversations", tokens, tokens.unit, "samples"),
    numbers("Conditions a sample", conditions, "conditions", "samples"),
    numbers("Turns a sample", turns, "turns", "samples")))];
}

function prompts() {
  if (!stats.prompts.length) return null;
  const heads = ["kind", "profile", "status", "prompts", "mean inside", "wholly inside", "ambiguous"];
  const table = el("div", {class: "scroll"}, el("table", {}, el("thead", {}, el("tr", {}, heads.map((name, index) =>
    el("th", {scope: "col", class: index > 2 ? "number" : null}, name)))),
  el("tbody", {}, stats.prompts.map((row) => el("tr", {}, el("th", {scope: "row"}, row.kind),
    el("td", {}, row.profile || "–"), el("td", {}, row.status),
    el("td", {class: "number"}, count(row.count)),
    [row.inside, row.whole, row.ambiguous].map((share) =>
      el("td", {class: "number"}, row.status === "none" ? "–" : percent(share))))))));
  const charts = stats.prompts.filter((row) => row.status !== "none" && row.count > 0).map((row) => histogram({
    title: `${row.kind}${row.status === "ok" ? "" : `, ${row.status}`}`,
    about: row.profile ? `profile ${row.profile}` : null,
    ...row.inside_histogram, shares: true, unit: "inside its object", of: "prompts"}));
  const about = "How much of each prompt lies inside its object. An ambiguous one lies more in another object than " +
    "in its own; a fallback is one that could not be drawn as its profile asks.";
  return [about, box(table), box(el("div", {class: "charts"}, charts))];
}

function lineage() {
  const rows = stats.lineage.objects;
  if (!rows.some((row) => row.origin !== "human")) return null;
  const charts = ["score", "stability"].filter((name) => stats.lineage[name].count).map((name) => histogram({
    title: name[0].toUpperCase() + name.slice(1), about: `mean ${stats.lineage[name].mean.toFixed(3)}`,
    ...stats.lineage[name].histogram, shares: true, unit: name, of: "objects"}));
  return ["Who labelled the objects: people, or models in rounds of relabelling.", box(barTable({
    caption: "objects by origin", heads: ["origin", "labeler", "round"], unit: "objects",
    of: rows.reduce((sum, row) => sum + row.objects, 0),
    rows: rows.map(({origin, labeler, round, objects}) =>
      ({labels: [origin, labeler ?? "–", round === null ? "–" : plainText(round)], value: objects}))})),
  charts.length > 0 && box(el("div", {class: "charts"}, charts))];
}

// --- what became of the records --------------------------------------------------------------------------------------

function records() {
  const {read, built, quarantined, filtered} = stats.records;
  const sum = (reasons) => Object.values(reasons ?? {}).reduce((total, number) => total + number, 0);
  const units = Object.keys(read);
  const table = el("div", {class: "scroll"}, el("table", {},
    el("thead", {}, el("tr", {}, ["unit", "read", "= built", "+ quarantined", "+ filtered"].map((name, index) =>
      el("th", {scope: "col", class: index ? "number" : null}, name)))),
    el("tbody", {}, units.map((unit) => el("tr", {}, el("th", {scope: "row"}, unit),
      [read[unit], built[unit] ?? 0, sum(quarantined[unit]), sum(filtered[unit])].map((number) =>
        el("td", {class: "number"}, count(number))))))));
  const reasons = reasonsOf(filtered);
  const {roles, missing, by_content: byContent} = data.forbidden;
  const held = Object.entries(roles ?? {}).map(([role, value]) => ({labels: [role], value}));
  const looked = Array.isArray(missing) ? missing : Object.keys(missing ?? {});
  return ["Every record that was read was built, quarantined or filtered for a reason.", box(table),
    reasons.length > 0 && [el("h3", {}, "Filtered, by reason"), box(byReason("filtered records", reasons))],
    (held.length > 0 || looked.length > 0) && [el("h3", {}, "Forbidden to training, by role"), box(
      held.length > 0 && barTable({caption: "pictures that are not trained on", heads: ["role"], rows: held,
        unit: "pictures"}),
      byContent > 0 && el("p", {class: "faint"}, `${count(byContent)} of them are also known by their bytes.`),
      looked.length > 0 && el("p", {class: "faint"}, `Looked for, and not there: ${looked.join(", ")}.`))],
    el("h3", {}, "Quarantine"), box(quarantine(quarantined))];
}

/** Rows of a table of reasons, the most frequent first. */
function reasonsOf(units) {
  return Object.entries(units)
    .flatMap(([unit, found]) => Object.entries(found).map(([reason, value]) => ({labels: [reason, unit], value})))
    .sort((a, b) => b.value - a.value);
}

/** Bars of the most frequent reasons; all of them on demand. */
function byReason(what, rows) {
  const bars = (shown) => barTable({caption: `${what} by reason`, heads: ["reason", "unit"], rows: shown,
    unit: "records"});
  if (rows.length <= FIRST + 3) return bars(rows);
  const place = el("div", {}, bars(rows.slice(0, FIRST)));
  const button = el("button", {type: "button", class: "quiet", onclick: () => {
    place.replaceChildren(bars(rows));
    button.remove();
  }}, `Show all ${count(rows.length)}`);
  return [place, button];
}

function quarantine(reasons) {
  const rows = reasonsOf(reasons);
  if (!rows.length) return el("p", {class: "faint"}, "Nothing was quarantined.");
  const {examples, replay} = data.quarantine;
  return [byReason("quarantined records", rows),
    command("Build them again, with the sources and the program as they are now", replay),
    el("details", {}, el("summary", {}, `Examples, ${count(examples.length)} of ${count(data.quarantine.total)}`),
      examples.map(badRecord))];
}

function badRecord(row) {
  return el("div", {class: "bad-record"}, el("p", {}, el("b", {}, row.reason),
    ` · ${row.unit} · ${row.source}/${row.split}`),
    el("p", {}, row.message), el("p", {class: "faint"}, `${row.file}: ${row.record}`),
    row.payload && el("details", {}, el("summary", {}, "The record"), el("pre", {tabindex: "0"}, row.payload,
      row.left > 0 && `\n… ${count(row.left)} more characters`)));
}

function mixture() {
  const expected = Object.entries(data.expected);
  if (!data.mixing && !expected.length) return null;
  const nodes = [];
  if (data.mixing) {
    const columns = [
      ["n_d", (row) => count(row.num_samples)], ["f_d", (row) => percent(row.fraction, 2)],
      ["r_d", (row) => row.factor.toFixed(3)], ["drawn in an epoch", (row) => count(row.length)],
      ["share", (row) => percent(row.share, 2)], ["epochs", (row) => row.epochs.toFixed(2)],
    ];
    const about = "n_d: training samples; f_d: their share; r_d: how often the rule repeats them; " +
      "epochs: how often an average sample is drawn in one epoch.";
    nodes.push(box(el("p", {class: "faint"}, about), tableOf(["source", ...columns.map(([name]) => name)],
      data.mixing.map((row) => [row.name, ...columns.map(([, text]) => text(row))]))));
  }
  if (expected.length) {
    nodes.push(el("h3", {}, "Published and found"), box(tableOf(["source", "published", "found", "difference"],
      expected.map(([name, row]) =>
      [name, count(row.expected), count(row.found), signed(row.found - row.expected)])),
    data.surprises.map((line) => el("p", {class: "warn"}, line))));
  }
  return ["How often an epoch draws from each source, and whether sources are as large as published.", nodes];
}

function signed(number) {
  return number === 0 ? "0" : `${number > 0 ? "+" : "−"}${count(Math.abs(number))}`;
}

function licences() {
  const rows = Object.entries(stats.licenses)
    .map(([name, value]) => ({labels: [name === "None" ? "not stated" : name], value}))
    .sort((a, b) => b.value - a.value);
  return rows.length ? ["Licences of the pictures, as their sources state them.",
    box(barTable({caption: "samples by licence of their picture", heads: ["licence"], rows, unit: "samples",
      of: stats.samples}))] : null;
}

// --- how it was built ------------------------------------------------------------------------------------------------

function build() {
  const {status} = data;
  const nodes = [];
  if (status?.seconds && Object.keys(status.seconds).length) {
    const rows = Object.entries(status.seconds);
    const before = status.images_before > 0
      ? `; it went on from ${count(status.images_before)} pictures done before` : "";
    const speed = Number(status.images_per_s ?? 0).toLocaleString("en-US", {maximumFractionDigits: 0});
    nodes.push(box(el("h4", {}, "Time"), tableOf(["stage", "time"],
      rows.map(([name, seconds]) => [name, duration(seconds)])),
      el("p", {class: "faint"}, `${count(status.workers ?? 1)} worker${plural(status.workers ?? 1)}, ` +
        `${speed} pictures a second while building${before}.`)));
  }
  const settings = {recipe: data.title, seed: data.seed, limit: data.limit, ...data.recipe, generator: data.generator,
    version: data.version};
  nodes.push(box(el("h4", {}, "Settings"), facts(settings)));
  return ["From which sources, how, and how long it took.", el("div", {class: "twin"}, nodes),
    status?.command && box(command("The command", status.command), command("Check the dataset", data.validate)),
    !status?.command && box(command("Check the dataset", data.validate)),
    el("h3", {}, "Sources"), box(tableOf(["source", "task", "builder", "pictures or rows", "categories", "options"],
      data.sources.map((source) =>
      [source.source, source.task, source.builder, count(source.images ?? 0), count(source.categories),
        optionsOf(source.options)]), [3, 4]))];
}

/** Settings as a list of names and values, nested ones with dots. */
function facts(values) {
  const rows = [];
  const add = (name, value) => {
    if (value === null || value === undefined) return;
    if (typeof value === "object" && !Array.isArray(value)) {
      for (const [key, item] of Object.entries(value)) add(`${name}.${key}`, item);
    } else rows.push([name, Array.isArray(value) ? value.join(", ") : String(value)]);
  };
  for (const [name, value] of Object.entries(values)) add(name, value);
  return tableOf(["setting", "value"], rows, []);
}

function optionsOf(options) {
  return Object.entries(options ?? {}).map(([name, value]) =>
    `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ") || "–";
}

function command(label, text) {
  return el("div", {class: "command"}, el("span", {class: "faint"}, label), el("code", {tabindex: "0"}, text),
    copyButton("Copy", () => text));
}

/** A table; numbers stand to the right: in all columns but the first, or in those named. */
function tableOf(heads, rows, right = heads.map((_, index) => index).slice(1)) {
  return el("div", {class: "scroll"}, el("table", {},
    el("thead", {}, el("tr", {}, heads.map((head, index) =>
      el("th", {scope: "col", class: right.includes(index) ? "number" : null}, head)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, index) => index
      ? el("td", {class: right.includes(index) ? "number" : null}, cell) : el("th", {scope: "row"}, cell)))))));
}

// --- samples ---------------------------------------------------------------------------------------------------------

function samples() {
  if (!data.samples.length) return null;
  const slots = data.samples.map((sample, index) => ({sample, index, node: slotOf(sample)}));
  const list = el("div", {class: "cards"}, slots.map(({node}) => node));
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) fill(entry.target);
  }, {rootMargin: "800px 0px"});
  const byNode = new Map(slots.map((slot) => [slot.node, slot]));
  const fill = (node) => {
    watcher.unobserve(node);
    node.classList.remove("waiting");
    const {sample} = byNode.get(node);
    node.replaceChildren(...[
      sample.cut && el("p", {class: "left-out faint"}, `Left out of this page: ${sample.cut}.`),
      sample.row ? renderCard(sample) : tooLarge(sample)].filter(Boolean));
  };
  for (const {node} of slots) watcher.observe(node);
  let rest = null;
  addEventListener("beforeprint", () => {
    for (const {node} of slots) if (node.classList.contains("waiting") && !node.hidden) fill(node);
    rest = drawAll(list);
  });
  addEventListener("afterprint", () => rest?.());
  const kinds = new Map();
  for (const {sample} of slots) if (sample.row) kinds.set(kindOf(sample), (kinds.get(kindOf(sample)) ?? 0) + 1);
  const choice = kinds.size > 1 && el("div", {class: "search"},
    el("label", {}, "Show ", el("select", {onchange: (event) => {
    const wanted = event.target.value;
    for (const {sample, node} of slots) node.hidden = wanted !== "" && !(sample.row && kindOf(sample) === wanted);
  }}, el("option", {value: ""}, `all ${count(slots.length)} samples`),
  [...kinds].map(([kind, number]) => el("option", {value: kind}, `${kind} (${count(number)})`)))));
  const {strata, seed} = data.gallery;
  const how = strata.length > 1
    ? `evenly from each of ${count(strata.length)} kinds (source, split, task, variant); ` +
      "how frequent a kind is, they do not show"
    : "at random";
  return [`${count(slots.length)} of ${count(stats.samples)} samples, drawn with seed ${plainText(seed)} ${how}.`,
    choice, list];
}

function kindOf({row}) {
  return [row.source, row.split, row.task, row.variant].filter(Boolean).join(" · ");
}

function slotOf(sample) {
  return el("div", {class: "slot waiting"}, 
    sample.row ? cut(sample.row.sample_id, 200)[0] : `row ${count(sample.number)}`);
}

function tooLarge(sample) {
  return el("article", {class: "card"},
    el("p", {}, `Row ${count(sample.number)} of ${sample.shard} is too large for this page.`),
    sample.commands.map(({label, command: text}) => command(label, text)));
}

// --- words -----------------------------------------------------------------------------------------------------------

function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = number, step = 0;
  while (size >= 1024 && step + 1 < units.length) {
    size /= 1024;
    step += 1;
  }
  return [size.toLocaleString("en-US", {maximumFractionDigits: size < 10 && step ? 1 : 0}), units[step]];
}

function duration(seconds) {
  if (seconds < 59.5) return `${Number(seconds).toFixed(seconds < 10 ? 1 : 0)} s`;
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  return minutes < 60 ? `${minutes} min ${whole % 60} s` : `${count(Math.floor(minutes / 60))} h ${minutes % 60} min`;
}

function day(seconds) {
  return new Date(1000 * seconds).toISOString().slice(0, 16).replace("T", " ") + " UTC";
}

function plainText(number) {
  return typeof number === "number" ? count(number) : String(number);
}
