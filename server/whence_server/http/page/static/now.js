// What runs now: generations as their tokens come, and what the server is doing.

import { countOf, link, make, preview, timeOf, visible } from "./elements.js";
import { generationRow } from "./rows.js";
import { follow, read, sleep } from "./requests.js";
import { readState } from "./server.js";
import { percent, probability } from "./parts.js";
import { surpriseClass, tokenParts } from "./text.js";
import { surpriseLegend } from "./view.js";

export const title = "Now";

const NUM_RECENT = 10;
const NUM_CARDS = 24;
const STATE_EVERY_MS = 5000;
// A card shows the newest of a long text.
const MOST_TOKENS = 600;

export async function show(place) {
  const { main, signal, say } = place;
  const tiles = make("div", "tiles wide");
  const cards = make("div", "cards");
  const empty = make("p", "soft", "Nothing is running. A generation appears here when it starts.");
  const recent = make("ol", "rows");
  const legend = make("div", "legend", ...surpriseLegend());
  main.replaceChildren(
    make("div", "sheet", make("h1", "", "Now"), tiles,
      make("div", "between", make("h2", "", "Running"), legend), empty, cards,
      make("h2", "", "Last generated"), recent),
  );
  const board = new Board(cards, empty, recent, signal);
  await board.load();
  keepState(tiles, place);
  watch(board, place, say).catch(place.fail);
}

async function watch(board, { signal }, say) {
  const changed = (state) => {
    say(state === "open" ? "" : "Connection lost. Trying again …");
    // What happened in between, and before the first event, is on record.
    if (state === "open") board.load().catch(() => {});
  };
  for await (const { data } of follow("/pulse", {}, { signal, changed }))
    for (const each of data.generations) board.take(each);
}

async function keepState(tiles, { signal }) {
  while (!signal.aborted) {
    if (!document.hidden)
      try {
        showState(tiles, await readState(signal));
      } catch {
        // The status line says that the connection is lost.
      }
    await sleep(STATE_EVERY_MS, signal);
  }
}

function showState(tiles, state) {
  const add = (value, name) => made.push(make("div", "", make("b", "", value), name));
  const made = [];
  const count = (value) => Number(value ?? 0).toLocaleString("en");
  add(count(state.running), "running");
  add(count(state.queued), "waiting");
  add(count(state.batchSize), "sequences in the batch");
  add(Number(state.tokensPerSecond ?? 0).toFixed(1), "tokens per second");
  if (state.exportLagSeconds !== undefined)
    add(`${Number(state.exportLagSeconds).toFixed(1)} s`, "until spans are exported");
  for (const model of state.models ?? []) {
    const digest = model.weightsDigest || model.modelDigest || "";
    const name = make("div", "model", make("b", "", visible(model.model ?? "")));
    name.append(digest ? `weights ${digest.slice(0, 12)}` : sayModelState(model));
    name.title = digest;
    made.push(name);
  }
  tiles.replaceChildren(...made);
}

function sayModelState({ state = "" }) {
  return state.replace("MODEL_STATE_", "").toLowerCase() || "no digest";
}

/** The cards of running generations and the list of the last ones. */
class Board {
  constructor(cards, empty, recent, signal) {
    Object.assign(this, { cards, empty, recent, signal, shown: new Map() });
    this.loading = false;
  }

  /** Reads what is on record: what runs, and what was last. */
  async load() {
    const { generations = [] } = await read("/generations", { page_size: 50 }, this.signal);
    const ended = generations.filter((each) => each.finishReason);
    this.#showRecent(ended.slice(0, NUM_RECENT));
    for (const each of generations)
      if (!each.finishReason && !this.shown.has(each.generationId)) await this.#addCard(each);
    for (const each of ended) this.#end(each.generationId);
    this.#tidy();
  }

  /** Takes what has happened to a generation. */
  take({ generationId: id, started, steps = [], finished }) {
    if (started) this.#addCard(started, true);
    this.shown.get(id)?.add(steps, this.signal);
    if (finished) {
      this.#end(id);
      this.#loadSoon();
    }
    this.#tidy();
  }

  #showRecent(ended) {
    // Rows that stay the same keep the focus.
    const ids = ended.map(({ generationId }) => generationId).join();
    if (ids === this.recentIds) return;
    this.recentIds = ids;
    this.recent.replaceChildren(...ended.map((each) => generationRow(each)));
    if (!ended.length) this.recent.append(make("li", "soft", "Nothing is on record yet."));
  }

  async #addCard(summary, isNew = false) {
    if (this.shown.has(summary.generationId)) return;
    const card = new Card(summary);
    this.shown.set(summary.generationId, card);
    this.cards.prepend(card.element);
    if (!isNew) await card.catchUp(this.signal);
  }

  #end(id) {
    const card = this.shown.get(id);
    if (!card) return;
    this.shown.delete(id);
    card.element.remove();
  }

  #tidy() {
    this.empty.hidden = this.shown.size > 0;
    const [oldest] = this.shown.keys();
    if (this.shown.size > NUM_CARDS) this.#end(oldest);
  }

  /** Reads the list again, once for many ends. */
  #loadSoon() {
    if (this.loading) return;
    this.loading = true;
    setTimeout(() => {
      this.loading = false;
      if (!this.signal.aborted) this.load().catch(() => {});
    }, 300);
  }
}

/** A running generation. */
class Card {
  constructor({ generationId: id, model, startTime, promptPreview }) {
    this.id = id;
    this.numRead = 0;
    this.count = make("span", "soft", "0 tokens");
    this.text = make("p", "text");
    this.text.dir = "auto";
    const open = link(`/generations/${encodeURIComponent(id)}`, preview(promptPreview, "no text on record"));
    this.element = make(
      "article",
      "card",
      make("p", "card-head", make("span", "live", "live"), " ", make("b", "", visible(model ?? "")), " · ", timeOf(startTime), " · ", this.count),
      make("h3", "", open),
      this.text,
    );
  }

  /** Adds steps of the first sequence, [sequence, index, text, logprob], that are not there yet. */
  add(steps, signal) {
    for (const [sequence, index, text, logprob] of steps) {
      if (sequence || index < this.numRead) continue;
      if (index > this.numRead) {
        // The page came after these, or lost its connection meanwhile: they are on record.
        this.catchUp(signal).catch(() => {});
        return;
      }
      const bits = logprob === null ? {} : { logprob };
      const span = make("span", `token ${surpriseClass(bits)}`, ...tokenParts(text, text));
      if (logprob !== null) span.title = percent(probability(logprob));
      this.text.append(span);
      this.numRead = index + 1;
    }
    while (this.text.childElementCount > MOST_TOKENS) this.text.firstElementChild.remove();
    this.count.textContent = countOf(this.numRead, "token");
  }

  /** Reads the steps that are on record already. */
  async catchUp(signal) {
    if (this.reading) return;
    this.reading = true;
    try {
      await this.#readSteps(signal);
    } finally {
      this.reading = false;
    }
  }

  async #readSteps(signal) {
    let token = "";
    do {
      const path = `/generations/${encodeURIComponent(this.id)}/steps`;
      const page = await read(path, { page_size: 1000, page_token: token }, signal);
      this.add((page.steps ?? []).map(shorten), signal);
      token = page.nextPageToken;
    } while (token);
  }
}

/** A step of the contract as the events of running generations have it. */
function shorten({ sequenceIndex = 0, index = 0, text = "", logprob }) {
  return [sequenceIndex, index, text, logprob === undefined ? null : Number(logprob)];
}
