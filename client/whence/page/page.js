// The page: which sequence and which token are shown, and how one gets to others.

const text = document.getElementById("text");
const panel = document.getElementById("details");
const strip = document.getElementById("strip");
const shown = {
  sequence: record.sequences[0],
  spans: new Map(),
  options: [],
  chosen: null,
  by: "sources",
};

/** Shows a sequence's text after the prompt; nothing is chosen. */
function showSequence(sequence) {
  shown.sequence = sequence;
  const spans = [...promptSpans(), ...(sequence ? outputSpans(sequence) : [])];
  shown.spans = new Map(
    spans
      .filter((span) => span.dataset.position)
      .map((span) => [Number(span.dataset.position), span]),
  );
  shown.options = spans.filter((span) => span.dataset.key);
  text.replaceChildren(...spans);
  for (const button of document.querySelectorAll("#sequences button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.sequence) === sequence.index));
  }
  choose(null);
}

function stepOf(key) {
  const [kind, index] = key.split(".");
  if (kind === "prompt") return record.prompt.steps[Number(index)];
  const sequence = record.sequences.find((each) => String(each.index) === kind);
  return sequence && sequence.steps.find((step) => String(step.index) === index);
}

/** Chooses a token by its key, "SEQUENCE.INDEX" or "prompt.INDEX", or none. */
function choose(key) {
  const before = document.querySelector("#text .here");
  if (before) {
    before.classList.remove("here");
    before.setAttribute("aria-selected", "false");
  }
  const found = key === null ? null : document.getElementById(`t${key}`);
  // The key may come from the address, and other things of the page have names as well: "#op".
  const span = found?.dataset.key === key ? found : null;
  shown.chosen = span ? key : null;
  const step = span ? stepOf(key) : null;
  if (span) {
    span.classList.add("here");
    span.setAttribute("aria-selected", "true");
    text.setAttribute("aria-activedescendant", span.id);
    const position = Number(span.dataset.position);
    const prompt = key.startsWith("prompt.");
    const place = { prompt, sequence: shown.sequence?.index, position, textAt };
    panel.replaceChildren(closeButton(), ...stepDetails(step, place));
  } else {
    text.removeAttribute("aria-activedescendant");
    panel.replaceChildren(...overview(shown.sequence, choose));
  }
  panel.classList.toggle("idle", !span);
  panel.scrollTop = 0;
  paint(step, span);
  remember(shown.chosen);
  if (span) span.scrollIntoView({ block: "nearest" });
}

function closeButton() {
  const button = make("button", "close", "×");
  button.type = "button";
  button.setAttribute("aria-label", "Back to the overview");
  button.addEventListener("click", () => choose(null));
  return button;
}

/** Keeps the choice in the address, so that it can be handed on. */
function remember(key) {
  try {
    history.replaceState(null, "", key === null ? location.pathname : `#${key}`);
  } catch {
    // Inside of another document, the page has no address of its own.
  }
}

function paint(step, span) {
  const most = paintSources(shown.spans, step, span ? Number(span.dataset.position) - 1 : -1);
  const bySources = Boolean(most) && shown.by === "sources";
  text.classList.toggle("by-sources", bySources);
  const choice = document.getElementById("shade");
  choice.hidden = !most;
  for (const button of choice.children)
    button.setAttribute("aria-pressed", String((button.dataset.shade === "sources") === bySources));
  document
    .getElementById("legend")
    .replaceChildren(...(bySources ? shareLegend(most) : surpriseLegend()));
  const steps = shown.sequence?.steps ?? [];
  drawStrip(strip, steps, step ? steps.indexOf(step) : -1);
}

function surpriseLegend() {
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

function textAt(position) {
  const { token_ids: ids, num_tokens: length } = record.prompt;
  if (position < length) return textOf(ids[position]);
  const step = shown.sequence?.steps.find((each) => each.index === position - length);
  if (!step) return "?";
  return step.token_id === undefined ? step.text : textOf(step.token_id);
}

/** Move the choice by this number of tokens; from none, to the first or the last. */
function move(by) {
  const now = shown.options.findIndex((span) => span.dataset.key === shown.chosen);
  const start = shown.options.findIndex((span) => !span.dataset.key.startsWith("prompt."));
  const next =
    now < 0 ? Math.max(start, 0) : Math.min(Math.max(now + by, 0), shown.options.length - 1);
  if (shown.options[next]) choose(shown.options[next].dataset.key);
}

const KEYS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9 };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") choose(null);
  else if (event.key in KEYS && (event.target === text || event.target === document.body))
    move(KEYS[event.key]);
  else return;
  event.preventDefault();
});
text.addEventListener("click", (event) => {
  const span = event.target.closest("[data-key]");
  if (span) choose(span.dataset.key === shown.chosen ? null : span.dataset.key);
});
panel.addEventListener("mouseover", (event) => link(event.target.closest("[data-position]")));
panel.addEventListener("mouseleave", () => link(null));
panel.addEventListener("focusin", (event) => link(event.target.closest("[data-position]")));
panel.addEventListener("click", (event) => find(event.target.closest("[data-position]")));
panel.addEventListener("keydown", (event) => {
  if (event.key === "Enter") find(event.target.closest("[data-position]"));
});
document.getElementById("shade").addEventListener("click", (event) => {
  if (!event.target.dataset.shade) return;
  shown.by = event.target.dataset.shade;
  const span = shown.chosen && document.getElementById(`t${shown.chosen}`);
  paint(span ? stepOf(shown.chosen) : null, span);
});
strip.addEventListener("click", (event) => {
  const steps = shown.sequence?.steps ?? [];
  const step = steps[Math.floor((event.offsetX / strip.clientWidth) * Math.max(steps.length, 24))];
  if (step) choose(`${shown.sequence.index}.${step.index}`);
});
window.addEventListener("resize", redraw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("hashchange", () => open(location.hash.slice(1)));

function redraw() {
  const span = shown.chosen && document.getElementById(`t${shown.chosen}`);
  paint(span ? stepOf(shown.chosen) : null, span);
}

/** Marks the token that a row of the panel is about. */
function link(row) {
  document.querySelector("#text .linked")?.classList.remove("linked");
  if (row) shown.spans.get(Number(row.dataset.position))?.classList.add("linked");
}

/** Brings the token that a row of the panel is about into sight. */
function find(row) {
  if (row) shown.spans.get(Number(row.dataset.position))?.scrollIntoView({ block: "center" });
}

/** Opens a token by its key, in whichever sequence it is. */
function open(key) {
  const sequence = record.sequences.find((each) => key.startsWith(`${each.index}.`));
  if (sequence && sequence !== shown.sequence) showSequence(sequence);
  choose(key || null);
}

function showFacts() {
  const { generation, sequences } = record;
  const count = sequences.reduce((sum, each) => sum + each.steps.length, 0);
  const { adapter } = generation;
  const name = adapter ? `${generation.model} with ${adapter.name}` : generation.model;
  const parts = [`${count.toLocaleString("en")} tokens`];
  if (generation.finish_reason)
    parts.push(`finished: ${generation.finish_reason.replaceAll("_", " ")}`);
  if (generation.failure) parts.push(generation.failure);
  if (generation.start_time)
    parts.push(generation.start_time.replace("T", " ").replace(/\.\d+Z$/, "Z"));
  document
    .getElementById("facts")
    .append(make("b", "", visible(name)), ` · ${visible(parts.join(" · "))}`);
  const list = document.querySelector("#provenance dl");
  const { digests, environment, decoding, trace, labels } = generation;
  const facts = { generation: generation.id, trace: generation.trace_id };
  for (const [name, value] of Object.entries(digests)) facts[`${name} digest`] = value;
  if (adapter) facts.adapter = `${adapter.name} (${adapter.peft_type}, for ${adapter.base})`;
  if (generation.upstream) facts.upstream = generation.upstream;
  if (generation.grades) facts.grades = generation.grades;
  if (generation.signed) facts.signed = generation.signed;
  if (generation.content_kept) facts["content kept"] = generation.content_kept;
  facts["chosen by"] = JSON.stringify(decoding);
  facts["recorded"] = JSON.stringify(trace);
  facts["computed by"] = JSON.stringify(environment);
  for (const [name, value] of Object.entries(labels)) facts[`label ${name}`] = value;
  for (const [name, value] of Object.entries(facts)) {
    if (value && value !== "{}")
      list.append(make("dt", "", visible(name)), make("dd", "", visible(value)));
  }
  const nav = document.getElementById("sequences");
  nav.hidden = sequences.length < 2;
  for (const sequence of sequences) {
    const button = make("button", "", `sequence ${sequence.index}`);
    button.type = "button";
    button.dataset.sequence = sequence.index;
    button.addEventListener("click", () => showSequence(sequence));
    nav.append(button);
  }
}

showFacts();
const asked = location.hash.slice(1);
showSequence(record.sequences[0]);
open(asked);
