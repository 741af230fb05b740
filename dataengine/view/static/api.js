// What the viewer asks its server, and the state that its address holds.

/** JSON of the server; an Error with its message where it refuses, or does not answer. */
export async function ask(path, query = {}, signal = undefined) {
  const response = await fetch(`${path}?${parameters(query)}`, {signal}).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("The server does not answer: was `dataengine view` stopped?");
  });
  const found = await response.json().catch(() => ({error: `the server answers ${response.status}`}));
  signal?.throwIfAborted(); // while the answer was read
  if (!response.ok) throw new Error(found.error ?? `the server answers ${response.status}`);
  return found;
}

function parameters(query) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") found.append(name, one);
    }
  }
  return found;
}

export const CHOICES = [
  "task", "variant", "source", "split", "category", "kind", "origin", "round", "labeler", "license", "change",
];
export const RANGES = ["objects", "area", "inside", "other", "score", "stability"];
const SINGLE = ["q", "ambiguous", "sort", "desc", ...RANGES, "reason", "from"]; // the last two of the quarantine
const TABS = ["samples", "quarantine"];

/** The state of an address: {tab, d, side, id, filters}. */
export function stateOf(search) {
  const query = new URLSearchParams(search);
  const filters = {};
  for (const name of CHOICES) if (query.has(name)) filters[name] = query.getAll(name);
  for (const name of SINGLE) if (query.get(name)) filters[name] = query.get(name);
  const number = query.get("n");
  return {
    tab: TABS.includes(query.get("tab")) ? query.get("tab") : "samples",
    d: Math.max(0, Number.parseInt(query.get("d") ?? "0", 10) || 0),
    side: query.get("side") === "1",
    id: query.get("id"),
    n: number === null ? null : Number.parseInt(number, 10),
    filters,
  };
}

/** The address of a state. */
export function addressOf(state) {
  const {tab, d, side, id, filters} = state;
  const found = parameters({
    tab: tab === "samples" ? null : tab, d: d || null, side: side ? "1" : null, ...filters,
    id: tab === "samples" ? id : null,
  }).toString();
  return found ? `/?${found}` : "/";
}
