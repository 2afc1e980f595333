// One generation: which sequence and which token are shown, and how one gets to others.

import { stepDetails } from "./details.js";
import { overview } from "./overview.js";
import { make, percent } from "./parts.js";
import {
  drawStrip,
  NUM_SHARES,
  NUM_SURPRISES,
  outputSpans,
  ownText,
  paintSources,
  promptSpans,
  SPREAD,
  textOf,
} from "./text.js";

const KEYS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9 };

/**
 * A generation as text and panel, inside of an element.
 *
 * Options:
 *   name: begins the ids of its elements, where a page has several views.
 *   whole: true if it takes the keys that no other element of the page takes.
 *   remember: is called with the key of the chosen token, or null.
 *   extend: returns further elements of the panel, for a step (or null) and its key.
 */
export class GenerationView {
  constructor(root, record, { name = "", whole = false, remember, extend } = {}) {
    this.record = record;
    this.name = name;
    this.whole = whole;
    this.remember = remember ?? (() => {});
    this.extend = extend ?? (() => []);
    this.sequence = record.sequences[0];
    this.spans = new Map();
    this.options = [];
    this.chosen = null;
    this.by = "sources";
    this.ended = new AbortController();
    this.#build(root);
    this.#listen(root);
    this.showSequence(this.sequence);
  }

  /** Stops listening; its elements can then be removed. */
  close() {
    this.ended.abort();
  }

  /** Shows what was added to the record since; what is chosen stays. */
  refresh() {
    if (this.sequence !== undefined && this.numShown) {
      this.#append(outputSpans(this.record, this.sequence, this.name, this.numShown));
      this.numShown = this.sequence.steps.length;
      this.#showSequences();
      if (this.chosen === null) this.#showOverview();
      this.#redraw();
    } else if (this.record.sequences.length) {
      this.showSequence(this.record.sequences[0]);
    }
  }

  /** Shows a sequence's text after the prompt; nothing is chosen. */
  showSequence(sequence) {
    this.sequence = sequence;
    this.numShown = sequence ? sequence.steps.length : 0;
    this.spans = new Map();
    this.options = [];
    this.text.replaceChildren();
    this.#append(promptSpans(this.record, this.name));
    if (sequence) this.#append(outputSpans(this.record, sequence, this.name));
    this.#showSequences();
    this.choose(null);
  }

  /** Chooses a token by its key, "SEQUENCE.INDEX" or "prompt.INDEX", or none. */
  choose(key) {
    const before = this.text.querySelector(".here");
    if (before) {
      before.classList.remove("here");
      before.setAttribute("aria-selected", "false");
    }
    const span = this.#spanOf(key);
    this.chosen = span ? key : null;
    const step = span ? this.#stepOf(key) : null;
    if (span) {
      span.classList.add("here");
      span.setAttribute("aria-selected", "true");
      this.text.setAttribute("aria-activedescendant", span.id);
      const place = {
        record: this.record,
        prompt: key.startsWith("prompt."),
        sequence: this.sequence?.index,
        position: Number(span.dataset.position),
        textAt: (position) => this.#textAt(position),
      };
      const details = stepDetails(step, place);
      this.panel.replaceChildren(this.#closeButton(), ...details, ...this.extend(step, key));
    } else {
      this.text.removeAttribute("aria-activedescendant");
      this.#showOverview();
    }
    this.panel.classList.toggle("idle", !span);
    this.panel.scrollTop = 0;
    this.#paint(step, span);
    this.remember(this.chosen);
    if (span) span.scrollIntoView({ block: "nearest" });
  }

  /** Opens a token by its key, in whichever sequence it is. */
  open(key) {
    const sequence = this.record.sequences.find((each) => key.startsWith(`${each.index}.`));
    if (sequence && sequence !== this.sequence) this.showSequence(sequence);
    this.choose(key || null);
  }

  #build(root) {
    const element = (tag, part, ...children) => {
      const made = make(tag, part, ...children);
      made.id = this.name + part;
      return made;
    };
    this.sequences = element("nav", "sequences");
    this.sequences.setAttribute("aria-label", "Sequences");
    this.legend = element("div", "legend");
    this.shade = element("div", "shade");
    this.shade.setAttribute("role", "group");
    this.shade.setAttribute("aria-label", "Colour by");
    for (const by of ["surprise", "sources"]) {
      const button = make("button", "", by);
      button.type = "button";
      button.dataset.shade = by;
      this.shade.append(button);
    }
    this.strip = element("canvas", "strip");
    this.strip.setAttribute("role", "img");
    this.strip.setAttribute("aria-label", "Surprise along the output, one bar a token");
    this.text = element("div", "text");
    this.text.setAttribute("role", "listbox");
    this.text.setAttribute("aria-label", "Tokens; arrow keys choose one");
    this.text.tabIndex = 0;
    this.text.dir = "auto";
    this.panel = element("aside", "details");
    this.panel.setAttribute("aria-label", "Why this token");
    const top = element("div", "top", this.sequences, element("div", "bar-of-view"), this.strip);
    top.children[1].append(this.legend, this.shade);
    const reading = element("section", "reading", top, this.text);
    reading.setAttribute("aria-label", "Prompt and output");
    root.append(reading, this.panel);
  }

  #listen(root) {
    const { signal } = this.ended;
    const on = (target, event, act) => target.addEventListener(event, act, { signal });
    const rowOf = (event) => event.target.closest("[data-position]");
    on(document, "keydown", (event) => this.#pressed(event, root));
    on(this.text, "click", (event) => {
      const span = event.target.closest("[data-key]");
      if (span) this.choose(span.dataset.key === this.chosen ? null : span.dataset.key);
    });
    on(this.panel, "mouseover", (event) => this.#link(rowOf(event)));
    on(this.panel, "mouseleave", () => this.#link(null));
    on(this.panel, "focusin", (event) => this.#link(rowOf(event)));
    on(this.panel, "click", (event) => this.#find(rowOf(event)));
    on(this.panel, "keydown", (event) => {
      if (event.key === "Enter") this.#find(rowOf(event));
    });
    on(this.shade, "click", (event) => {
      if (!event.target.dataset.shade) return;
      this.by = event.target.dataset.shade;
      this.#redraw();
    });
    on(this.strip, "click", (event) => {
      const steps = this.sequence?.steps ?? [];
      const share = event.offsetX / this.strip.clientWidth;
      const step = steps[Math.floor(share * Math.max(steps.length, 24))];
      if (step) this.choose(`${this.sequence.index}.${step.index}`);
    });
    on(window, "resize", () => this.#redraw());
    const scheme = window.matchMedia("(prefers-color-scheme: dark)");
    on(scheme, "change", () => this.#redraw());
  }

  #pressed(event, root) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const free = this.whole && event.target === document.body;
    if (event.key === "Escape" && (free || root.contains(event.target))) this.choose(null);
    else if (event.key in KEYS && (free || event.target === this.text)) this.#move(KEYS[event.key]);
    else return;
    event.preventDefault();
  }

  #append(spans) {
    for (const span of spans) {
      if (span.dataset.position) this.spans.set(Number(span.dataset.position), span);
      if (span.dataset.key) this.options.push(span);
    }
    this.text.append(...spans);
  }

  #showSequences() {
    const { sequences } = this.record;
    this.sequences.hidden = sequences.length < 2;
    while (this.sequences.children.length < sequences.length) {
      const sequence = sequences[this.sequences.children.length];
      const button = make("button", "", `sequence ${sequence.index}`);
      button.type = "button";
      button.dataset.sequence = sequence.index;
      button.addEventListener("click", () => this.showSequence(sequence));
      this.sequences.append(button);
    }
    for (const button of this.sequences.children) {
      const pressed = Number(button.dataset.sequence) === this.sequence?.index;
      button.setAttribute("aria-pressed", String(pressed));
    }
  }

  #showOverview() {
    const choose = (key) => this.choose(key);
    this.panel.replaceChildren(
      ...overview(this.record, this.sequence, choose),
      ...this.extend(null, null),
    );
  }

  #spanOf(key) {
    if (key === null) return null;
    const found = document.getElementById(`${this.name}t${key}`);
    // The key may come from the address, and other things of the page have names as well: "#op".
    return found?.dataset.key === key ? found : null;
  }

  #stepOf(key) {
    const [kind, index] = key.split(".");
    if (kind === "prompt") return this.record.prompt.steps[Number(index)];
    const sequence = this.record.sequences.find((each) => String(each.index) === kind);
    return sequence?.steps.find((step) => String(step.index) === index);
  }

  #textAt(position) {
    const { token_ids: ids, num_tokens: length } = this.record.prompt;
    if (position < length) return textOf(this.record, ids[position]);
    const step = this.sequence?.steps.find((each) => each.index === position - length);
    return step ? ownText(this.record, step) : "?";
  }

  #closeButton() {
    const button = make("button", "close", "×");
    button.type = "button";
    button.setAttribute("aria-label", "Back to the overview");
    button.addEventListener("click", () => this.choose(null));
    return button;
  }

  #redraw() {
    const span = this.#spanOf(this.chosen);
    this.#paint(span ? this.#stepOf(this.chosen) : null, span);
  }

  #paint(step, span) {
    const newest = span ? Number(span.dataset.position) - 1 : -1;
    const most = paintSources(this.text, this.spans, step, newest);
    const bySources = Boolean(most) && this.by === "sources";
    this.text.classList.toggle("by-sources", bySources);
    this.shade.hidden = !most;
    for (const button of this.shade.children) {
      const pressed = (button.dataset.shade === "sources") === bySources;
      button.setAttribute("aria-pressed", String(pressed));
    }
    this.legend.replaceChildren(...(bySources ? shareLegend(most) : surpriseLegend()));
    const steps = this.sequence?.steps ?? [];
    drawStrip(this.strip, steps, step ? steps.indexOf(step) : -1);
  }

  /** Moves the choice by this number of tokens; from none, to the first or the last. */
  #move(by) {
    const { options } = this;
    const now = options.findIndex((span) => span.dataset.key === this.chosen);
    const start = options.findIndex((span) => !span.dataset.key.startsWith("prompt."));
    const next = now < 0 ? Math.max(start, 0) : Math.min(Math.max(now + by, 0), options.length - 1);
    if (options[next]) this.choose(options[next].dataset.key);
  }

  /** Marks the token that a row of the panel is about. */
  #link(row) {
    this.text.querySelector(".linked")?.classList.remove("linked");
    if (row) this.spans.get(Number(row.dataset.position))?.classList.add("linked");
  }

  /** Brings the token that a row of the panel is about into sight. */
  #find(row) {
    if (row) this.spans.get(Number(row.dataset.position))?.scrollIntoView({ block: "center" });
  }
}

export function surpriseLegend() {
  const boxes = Array.from({ length: NUM_SURPRISES + 1 }, (_, bits) => make("span", `s${bits}`));
  return legend("How surprising each token was to the model", boxes, [
    "certain",
    "1 in 8",
    "1 in 64",
    "1 in 512",
  ]);
}

function shareLegend(most) {
  const boxes = Array.from({ length: NUM_SHARES + 1 }, (_, i) => make("span", i ? `b${i}` : ""));
  return legend("What the chosen token drew on directly", boxes, [
    "0",
    percent(most * 0.5 ** (1 / SPREAD)),
    percent(most),
  ]);
}

function legend(says, boxes, ticks) {
  const scale = make("div", "scale", ...boxes);
  scale.setAttribute("aria-hidden", "true");
  return [
    make("div", "", says),
    scale,
    make("div", "ticks", ...ticks.map((tick) => make("span", "", tick))),
  ];
}
