// A generation's record as the server has it: read page by page, and followed while it runs.

import { addFinish, addPromptSteps, addSteps, makeRecord } from "./record.js";
import { follow, read } from "./requests.js";
import { findVocabulary } from "./server.js";

// The first page is short, so that there is something to see at once.
const FIRST_PAGE = 256;
const PAGE = 1000;

/**
 * Reads a generation; `changed` is called whenever more of it is there.
 *
 * Returns {id, record, summary, started, occurrences, complete} once it has begun to be there.
 */
export async function loadGeneration(id, signal, { changed, failed }) {
  const path = `/generations/${encodeURIComponent(id)}`;
  const { summary, started, finished, occurrences = [] } = await read(path, {}, signal);
  const vocabulary = started.promptTokenIds || !started.upstream ? await findVocabulary(started) : null;
  const shown = {
    id,
    summary,
    started,
    record: makeRecord(started, vocabulary),
    occurrences: occurrences.map(describeOccurrence),
    complete: false,
  };
  const reading = new Reading(path, shown, signal, changed);
  await reading.readPrompt();
  await reading.readPage(FIRST_PAGE);
  (finished ? reading.readToEnd(finished) : reading.follow()).catch((error) => {
    if (!signal.aborted) failed(error);
  });
  return shown;
}

class Reading {
  constructor(path, shown, signal, changed) {
    Object.assign(this, { path, shown, signal, changed, token: "", numRead: new Map() });
  }

  async readPrompt() {
    if (!this.shown.started.effectiveTrace?.prompt) return;
    let token = "";
    do {
      const parameters = { prompt: true, page_size: PAGE, page_token: token };
      const page = await read(`${this.path}/steps`, parameters, this.signal);
      addPromptSteps(this.shown.record, page.steps ?? []);
      token = page.nextPageToken;
    } while (token);
  }

  /** Reads the next page of steps; returns whether there are more. */
  async readPage(size = PAGE) {
    const parameters = { page_size: size, page_token: this.token };
    const page = await read(`${this.path}/steps`, parameters, this.signal);
    this.add(page.steps ?? []);
    // Of the last page there is no token: it is read again for what follows.
    if (page.nextPageToken) this.token = page.nextPageToken;
    return Boolean(page.nextPageToken);
  }

  /** Adds steps that are not there yet; returns whether some before them are missing. */
  add(steps) {
    const fresh = [];
    for (const step of steps) {
      const sequence = step.sequenceIndex ?? 0;
      const known = this.numRead.get(sequence) ?? 0;
      const index = step.index ?? 0;
      if (index > known) return this.take(fresh, true);
      if (index < known) continue;
      this.numRead.set(sequence, known + 1);
      fresh.push(step);
    }
    return this.take(fresh, false);
  }

  take(fresh, isMissing) {
    addSteps(this.shown.record, fresh);
    return isMissing;
  }

  async readToEnd(finished) {
    if (this.ending) return;
    this.ending = true;
    while (await this.readPage()) this.changed();
    addFinish(this.shown.record, finished);
    this.shown.complete = true;
    this.changed();
  }

  /** Follows a running generation; reads again what the events have left out. */
  async follow() {
    const { shown, signal } = this;
    const parameters = { trace_id: shown.record.generation.trace_id };
    const events = follow("/watch", parameters, {
      signal,
      changed: async (state) => {
        if (state !== "open") return;
        // From here on the events say what happens; what was before is on record.
        await this.catchUp();
      },
    });
    for await (const { data } of events) {
      if (data.generationId !== shown.id || !data.event) continue;
      if (data.event.steps && this.add(data.event.steps.steps ?? [])) await this.catchUp();
      this.changed();
      if (shown.complete) return;
      if (data.event.finished) return this.finish();
    }
  }

  async catchUp() {
    try {
      const { finished } = await read(this.path, {}, this.signal);
      while (await this.readPage());
      this.changed();
      if (finished) await this.readToEnd(finished);
    } catch {
      // The next event finds the same gap.
    }
  }

  async finish() {
    const { finished, occurrences = [] } = await read(this.path, {}, this.signal);
    this.shown.occurrences = occurrences.map(describeOccurrence);
    await this.readToEnd(finished);
  }
}

/** What happened to a generation, in words. */
function describeOccurrence(occurrence) {
  const { time, ...rest } = occurrence;
  const kind = Object.keys(rest).find((name) => name !== "numSteps") ?? "something happened";
  const name = kind.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  return { name, time };
}
