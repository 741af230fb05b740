// Elements without HTML text: whatever a dataset says stays text.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Attributes that are null or false are left out; those named on… are listeners. */
export function el(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function svg(tag, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A whole number with separators; numbers that JavaScript would round are texts already. */
export function count(number) {
  return typeof number === "number" ? number.toLocaleString("en-US") : String(number);
}

/** The end of a noun after a number. */
export function plural(number) {
  return number === 1 ? "" : "s";
}

/** A share such as "97.5 %"; it is rounded neither to nothing nor to all. */
export function percent(share, digits = 1) {
  if (!Number.isFinite(share)) return "–";
  const least = 10 ** -digits;
  if (share > 0 && 100 * share < least / 2) return `< ${least} %`;
  if (share < 1 && 100 * share >= 100 - least / 2) return `> ${(100 - least).toFixed(digits)} %`;
  return `${(100 * share).toFixed(digits).replace(/\.0+$/, "")} %`;
}

/** The first `most` code points of a text, and how many are left out. */
export function cut(text, most) {
  if (text.length <= most) return [text, 0];
  const points = Array.from(text);
  return points.length <= most ? [text, 0] : [points.slice(0, most).join(""), points.length - most];
}

/** The last `most` code points of a place, whose end tells it from others. */
export function tail(text, most) {
  const points = Array.from(text);
  return points.length <= most ? text : `…${points.slice(-most).join("")}`;
}

/** A text of a dataset, cut, whose direction of writing ends with it. */
export function said(text, most) {
  const [shown, left] = cut(String(text), most);
  return el("bdi", {}, left ? `${shown}…` : shown);
}

/** Listener for keydown of a `role="button"`: Enter and space click. */
export function pressOnEnter(event) {
  if (event.target !== event.currentTarget || (event.key !== "Enter" && event.key !== " ")) return;
  event.preventDefault();
  event.stopPropagation();
  event.currentTarget.click();
}

/** A button that copies what `text()` gives, and says that it did. */
export function copyButton(label, text) {
  const answer = el("span", { class: "said", role: "status" });
  const button = el("button", {
    type: "button",
    class: "quiet",
    onclick: async () => {
      answer.textContent = (await copied(text())) ? "copied" : "select it and copy by hand";
      setTimeout(() => (answer.textContent = ""), 2000);
    },
  }, label);
  return el("span", { class: "copy" }, button, answer);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { readonly: true, class: "offscreen" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
