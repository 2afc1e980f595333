// One generation: its text and reasons, live while it runs, and where it came from.

import { actions, panelActions } from "./actions.js";
import { countOf, link, make, timeOf, visible } from "./elements.js";
import { provenance } from "./facts.js";
import { loadGeneration } from "./generation.js";
import { duration } from "./parts.js";
import { GenerationView } from "./view.js";

export const title = "Generation";

export async function show(place) {
  const { main, signal, parameters, fail } = place;
  let view;
  let head;
  // The token that the address names may come later than its page.
  let asked = place.hash;
  const refresh = () => {
    if (!view || signal.aborted) return;
    head.refresh();
    view.refresh();
    if (asked && document.getElementById(`t${asked}`)) {
      view.open(asked);
      asked = "";
    }
  };
  const shown = await loadGeneration(parameters[0], signal, { changed: refresh, failed: fail });
  if (signal.aborted) return;
  head = new Head(shown, place);
  const body = make("div", "view");
  main.className = "whole";
  main.replaceChildren(head.element, body);
  view = new GenerationView(body, shown.record, {
    whole: true,
    remember,
    extend: (step, key) => panelActions(place, shown, step, key),
  });
  signal.addEventListener("abort", () => view.close());
  window.addEventListener("hashchange", () => view.open(location.hash.slice(1)), { signal });
  refresh();
}

function remember(key) {
  const { pathname, search } = location;
  history.replaceState(null, "", `${pathname}${search}${key === null ? "" : `#${key}`}`);
}

/** What stands above the text. */
class Head {
  constructor(shown, place) {
    this.shown = shown;
    this.place = place;
    this.line = make("p", "facts");
    this.actions = make("p", "actions");
    this.provenance = make("dl", "facts-list");
    this.timing = make("dl", "facts-list");
    this.origin = make("p", "origin");
    this.element = make(
      "header",
      "head",
      make("h1", "", title),
      this.line,
      this.origin,
      this.actions,
      folded("provenance", "Provenance", this.provenance),
      folded("timing", "Timing", this.timing),
    );
    document.title = `${visible(shown.summary.promptPreview || shown.id)} · whence`;
    this.state = "";
  }

  /** Shows what is known by now. */
  refresh() {
    const { record, complete, occurrences } = this.shown;
    const { generation, sequences } = record;
    const count = sequences.reduce((sum, each) => sum + each.steps.length, 0);
    const reason = generation.finish_reason;
    this.line.replaceChildren(
      make("b", "", visible(generation.model)),
      ` · ${countOf(count, "token")} · `,
      reason ? `finished: ${visible(reason.replaceAll("_", " "))}` : make("span", "live", "running"),
      " · ",
      timeOf(generation.start_time),
    );
    if (generation.failure) this.line.append(` · ${visible(generation.failure)}`);
    // Links and buttons keep the focus as long as they stay the same.
    const state = `${complete} ${occurrences.length}`;
    if (state === this.state) return;
    this.state = state;
    this.origin.replaceChildren(...origin(generation));
    this.actions.replaceChildren(...actions(this.place, this.shown));
    this.provenance.replaceChildren(...provenance(record));
    this.timing.replaceChildren(...timing(this.shown));
  }
}

function folded(part, name, content) {
  const made = make("details", "", make("summary", "", name), content);
  made.dataset.part = part;
  return made;
}

/** Which weights, which training run, whose signature. */
function origin(generation) {
  const { digests, training_run: run } = generation;
  const facts = [];
  const add = (name, value) =>
    facts.push(make("span", "", make("span", "soft", `${name} `), value));
  const weights = digests.weights || digests.model;
  const code = make("code", "", weights.slice(0, 16));
  code.title = weights;
  add("weights", weights ? code : "not on record");
  if (run) {
    const address = `/training/${encodeURIComponent(run.training_run_id)}`;
    add("made by training run", link(address, `${visible(run.training_run_id)}, step ${run.step ?? 0}`));
  } else add("training", "not on record");
  if (generation.signed) add("signed", visible(generation.signed));
  if (generation.content_kept) add("kept", generation.content_kept);
  return facts;
}

function timing({ record, occurrences }) {
  const { finished } = record.generation;
  const list = [];
  const add = (name, value) => list.push(make("dt", "", name), make("dd", "", value));
  if (finished) {
    add("waited in the queue", duration(finished.queue_ns));
    add("read the prompt", duration(finished.prefill_ns));
    add("chose tokens", duration(finished.decode_ns));
  }
  const timed = record.sequences[0]?.steps.filter((step) => step.timing) ?? [];
  if (timed.length > 1) {
    const span = timed.at(-1).timing.elapsed_ns - timed[0].timing.elapsed_ns;
    if (span > 0) add("tokens per second", (((timed.length - 1) * 1e9) / span).toFixed(1));
  }
  for (const { name, time } of occurrences) add(name, timeOf(time));
  if (!list.length) add("timing", "not on record");
  return list;
}
