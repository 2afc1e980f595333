// All generations on record: filters, and whether a text came from here.

import { button, choiceOf, field, inputOf, make } from "./elements.js";
import { generationRow } from "./rows.js";
import { read } from "./requests.js";
import { state } from "./server.js";

export const title = "Find";

const PAGE = 50;

export async function show(place) {
  const { main, query, signal } = place;
  const list = make("ol", "rows");
  const said = make("p", "soft none");
  said.setAttribute("role", "status");
  const more = button("Show more", () => page.add().catch(place.fail), "more");
  const comparing = new Comparing(place);
  main.replaceChildren(
    make("div", "sheet", make("h1", "", "Find"), filters(place), said, list, more, comparing.element),
  );
  const text = query.get("text");
  const page = new Pages(list, more, said, comparing, text ? searching(query) : listing(query), signal);
  await page.add();
  const seen = new IntersectionObserver((entries) => {
    if (entries.some((each) => each.isIntersecting) && !more.hidden) page.add().catch(place.fail);
  });
  seen.observe(more);
  signal.addEventListener("abort", () => seen.disconnect());
}

function filters({ query, navigate }) {
  const { offers, models } = state();
  const form = make("form", "filters");
  form.setAttribute("role", "search");
  const value = (name) => query.get(name) ?? "";
  if (offers.has("search"))
    form.append(
      field("Did this text come from here?", inputOf("text", { type: "area", rows: 2, value: value("text"), minLength: 20, maxLength: 2000 }),
        "Paste a sentence: the generations that contain it, or most of it."),
    );
  const names = (models ?? []).map(({ model }) => [model, model]);
  const row = make(
    "div",
    "fields",
    field("Model", choiceOf("model", [["", "any"], ...names], value("model"))),
    field("After", inputOf("after", { type: "datetime-local", value: value("after") })),
    field("Before", inputOf("before", { type: "datetime-local", value: value("before") })),
    field("Label", inputOf("label", { value: value("label"), placeholder: "KEY=VALUE" })),
    field("Trace id", inputOf("trace", { value: value("trace"), pattern: "[0-9a-f]{32}", placeholder: "32 hex digits" })),
  );
  const submit = make("button", "primary", "Find");
  form.append(row, submit);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const asked = new URLSearchParams();
    for (const [name, each] of new FormData(form)) if (each.trim()) asked.set(name, each.trim());
    navigate(`/generations${asked.size ? `?${asked}` : ""}`);
  });
  return form;
}

/** The parameters of a filter, as the addresses of this view have it. */
function filterOf(query) {
  const time = (name) => (query.get(name) ? new Date(query.get(name)).toISOString() : undefined);
  return {
    model: query.get("model"),
    trace_id: query.get("trace"),
    start_after: time("after"),
    start_before: time("before"),
    labels: query.getAll("label"),
  };
}

function listing(query) {
  return async (token, signal) => {
    const parameters = { ...filterOf(query), page_size: PAGE, page_token: token };
    const { generations = [], nextPageToken } = await read("/generations", parameters, signal);
    return { rows: generations.map((summary) => ({ summary })), nextPageToken };
  };
}

function searching(query) {
  return async (token, signal) => {
    const parameters = { ...filterOf(query), text: query.get("text"), page_size: PAGE, page_token: token };
    const found = await read("/search", parameters, signal);
    const { hits = [], nextPageToken, numEntriesBehind, isCut } = found;
    return { rows: hits.map(describeHit), nextPageToken, behind: Number(numEntriesBehind ?? 0), isCut };
  };
}

/** A hit as a row: where the text stands, and how much of it. */
function describeHit({ summary, part, sequenceIndex = 0, stepIndex, share = 0, ...texts }) {
  const much = share >= 1 ? "contains it" : `contains ${Math.floor(share * 100)}% of it`;
  const isPrompt = part === "SEARCH_PART_PROMPT";
  const where = isPrompt ? " in its prompt" : stepIndex === undefined ? "" : `, from token ${stepIndex}`;
  const begin = isPrompt || stepIndex === undefined ? "" : `${sequenceIndex}.${stepIndex}`;
  return { summary, begin, said: `${much}${where}`, found: texts };
}

/** The rows of a list, page after page. */
class Pages {
  constructor(list, more, said, comparing, readPage, signal) {
    Object.assign(this, { list, more, said, comparing, readPage, signal, token: "", busy: false });
    more.hidden = true;
  }

  async add() {
    if (this.busy) return;
    this.busy = true;
    try {
      // A page may be empty without being the last.
      for (let num = 0; !num; ) {
        const { rows, nextPageToken, behind = 0, isCut } = await this.readPage(this.token, this.signal);
        this.token = nextPageToken ?? "";
        this.#append(rows);
        if (isCut) this.said.append(" Not all could be searched: too many have a part of the text. A filter searches others.");
        if (behind) this.said.append(` ${behind.toLocaleString("en")} entries are not searched yet.`);
        num = rows.length || !nextPageToken;
      }
    } finally {
      this.busy = false;
    }
  }

  #append(rows) {
    const chosen = (id, on) => this.comparing.choose(id, on);
    for (const { summary, ...others } of rows)
      this.list.append(generationRow(summary, { ...others, chosen }));
    this.more.hidden = !this.token;
    const count = this.list.childElementCount;
    this.said.textContent = count ? "" : "No generation on record matches.";
  }
}

/** Two generations that are to be shown side by side. */
class Comparing {
  constructor(place) {
    this.chosen = [];
    this.go = button("Compare these two", () => {
      const [left, right] = this.chosen.map(encodeURIComponent);
      place.navigate(`/compare?left=${left}&right=${right}`);
    }, "primary");
    this.element = make("div", "comparing", this.go);
    this.element.hidden = true;
  }

  choose(id, on) {
    this.chosen = this.chosen.filter((each) => each !== id);
    if (on) this.chosen.push(id);
    this.element.hidden = this.chosen.length !== 2;
  }
}
