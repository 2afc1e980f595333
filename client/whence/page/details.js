// The panel of one token: everything that is on record of its step.

import {
  bar,
  barsOf,
  cell,
  duration,
  make,
  percent,
  probability,
  rounded,
  shortened,
  swatched,
  tableOf,
  visible,
  wordCell,
  worded,
  wordParts,
} from "./parts.js";
import { ownText, sharesByPosition, surprise, textOf } from "./text.js";

const LAYERS_SAY =
  "The model's own final stages applied to each layer, among these candidates only: " +
  "what is decodable there, not what caused the choice.";
const SOURCES_SAY =
  "Direct sources: what the newest position read through attention. " +
  "Not information flow, not cause.";
const SINK_SAYS = "positions that heads attend to when they have nothing to read. It is no source.";
const NUM_SOURCES = 6; // shown at first, like the next
const NUM_CANDIDATES = 10;
const MOST_LAYERS = 16;
const METHODS = {
  "value-norm-attention/1": "attention weighted by the norm of the values",
  "value-norm-attention/2": "attention weighted by the norm of the values",
};

/**
 * Everything that is recorded of a step, as elements.
 *
 * `place` says where the step is: `record`, `prompt` (whether it is a token of the prompt),
 * `sequence` (index), `position` in the context, and `textAt` (text by position).
 */
export function stepDetails(step, place) {
  const { record } = place;
  return [
    make(
      "h2",
      "",
      make("q", "", ...wordParts(ownText(record, step))),
    ),
    make("p", "place", placeLine(step, place)),
    tiles(step),
    ...candidateDetails(step, record),
    ...choiceDetails(step, place),
    ...layerDetails(step, record),
    ...sourceDetails(step, place),
    ...timingDetails(step),
  ].filter(Boolean);
}

function placeLine(step, { record, prompt, sequence, position }) {
  const parts = [prompt ? `prompt token ${step.index}` : `step ${step.index}`];
  if (!prompt && record.sequences.length > 1) parts.push(`sequence ${sequence}`);
  if (position >= 0 && !prompt) parts.push(`position ${position}`);
  // A negative number stands for a token that an upstream named by text alone.
  if (step.token_id >= 0) parts.push(`id ${step.token_id}`);
  if (step.text === "" && step.token_id !== undefined) parts.push("its bytes add no character yet");
  return parts.join(" · ");
}

function tiles(step) {
  const grid = make("div", "tiles");
  const add = (value, name) => value && grid.append(make("div", "", make("b", "", value), name));
  if (step.logprob !== undefined) add(percent(probability(step.logprob)), "by the model");
  if (step.sampling_logprob !== undefined)
    add(
      percent(probability(step.sampling_logprob)),
      step.draw ? "as drawn from" : "as chosen from",
    );
  if (step.rank !== undefined)
    add(
      `${step.rank.toLocaleString("en")}`,
      step.rank === 1 ? "likelier token" : "likelier tokens",
    );
  const bits = surprise(step);
  if (bits !== undefined)
    add(Number.isFinite(bits) ? Math.abs(bits).toFixed(1) : "∞", "bits of surprise");
  return grid;
}

function candidateDetails(step, record) {
  const rows = candidateRows(step, record);
  if (!rows.length) return [];
  const processed = rows.some((row) => row.drawn !== undefined);
  const most = Math.max(...rows.flatMap((row) => [probability(row.model), probability(row.drawn)]));
  const heads = ["", "", swatched("", "the model")];
  if (processed) heads.push(swatched("drawn", step.draw ? "drawn from" : "chosen from"));
  const shown = rows.map(({ id, model, drawn }) => {
    const bars = barsOf(
      bar("", probability(model) / most),
      bar("drawn", probability(drawn) / most),
    );
    const cells = [wordCell(textOf(record, id)), cell("bar", bars), cell("", percent(probability(model)))];
    const after = drawn === null ? ["gone", "removed"] : ["", percent(probability(drawn))];
    if (processed) cells.push(cell(...after));
    return make("tr", id === step.token_id ? "chosen" : "", ...cells);
  });
  const out = [make("h3", "", "What was likely"), ...shortened(heads, shown, NUM_CANDIDATES)];
  if (step.entropy !== undefined) {
    const bits = (step.entropy / Math.LN2).toFixed(1);
    const said = `Entropy ${bits} bits: as open as ${rounded(Math.exp(step.entropy))}`;
    out.push(make("p", "", `${said} equally likely tokens.`));
  }
  return out;
}

/**
 * The candidates, the tokens that the request named, and the chosen token, which is never among
 * those that have to be unfolded.
 */
function candidateRows(step, record) {
  const { candidates, requested, token_id: own, logprob, sampling_logprob } = step;
  const ids = candidates?.token_ids ?? [];
  const named = requested ? record.generation.trace.logprob_token_ids : [];
  if (!ids.length && !named.length) return [];
  const rowsOf = (tokens, { logprobs, sampling_logprobs: drawn }) =>
    tokens.map((id, i) => ({ id, model: logprobs[i], drawn: drawn[i] }));
  const rows = ids.length ? rowsOf(ids, candidates) : [];
  if (!ids.includes(own)) rows.push({ id: own, model: logprob, drawn: sampling_logprob });
  const listed = new Set(rows.map((row) => row.id));
  if (named.length) rows.push(...rowsOf(named, requested).filter(({ id }) => !listed.has(id)));
  const chosen = rows.findIndex((row) => row.id === own);
  if (chosen >= NUM_CANDIDATES) rows.splice(NUM_CANDIDATES - 1, 0, ...rows.splice(chosen, 1));
  return rows;
}

/** What each setting did to the distribution, and how the token was taken from what was left. */
function choiceDetails(step, place) {
  const said = place.prompt
    ? ""
    : [constraintSentence(step, place), drawSentence(step, place), noiseSentence(step, place)]
        .filter(Boolean)
        .join(" ");
  const out = step.processors ? [processorTable(step.processors, place.record)] : [];
  if (said) out.push(make("p", "", said));
  return out.length ? [make("h3", "", "How it was chosen"), ...out] : [];
}

function processorTable(processors, record) {
  const { num_kept: kept, removed_mass: removed, token_logprobs: after } = processors;
  const table = tableOf(["after", "tokens left", "mass removed", "this token"]);
  kept.forEach((count, i) => {
    const name = record.generation.processor_names[i] ?? `processor ${i}`;
    const cells = [
      cell("", visible(name)),
      cell("", count.toLocaleString("en")),
      cell("", percent(removed[i])),
    ];
    table.append(make("tr", "", ...cells, cell("", percent(probability(after[i])))));
  });
  return table;
}

/** What the constraint did: it is always the first of the processors. */
function constraintSentence({ processors, rank }, { record }) {
  if (!processors || record.generation.processor_names[0] !== "constraint") return "";
  const taken = percent(processors.removed_mass[0]);
  const first = rank === 0 ? "The model's own first choice was allowed." : "";
  if (processors.num_kept[0] === 1)
    return `Forced: the constraint left this token alone, and took ${taken} away.`;
  return [`The constraint took ${taken} of the model's probability away.`, first]
    .filter(Boolean)
    .join(" ");
}

function noiseSentence({ draw, index }, { record, sequence }) {
  if (!draw) return "";
  const seed = record.generation.decoding.sample?.seed ?? "?";
  const drawn = sequence + (record.generation.first_draw_sequence ?? 0);
  const inputs = `seed ${seed}, sequence ${drawn}, index ${index} and its id alone`;
  return `Its noise, ${draw.noise}, is a function of ${inputs}.`;
}

function drawSentence(step, { record }) {
  const { draw } = step;
  if (step.index < (record.generation.num_forced_steps ?? 0))
    return "Given, not chosen: a branch repeats its parent, or has this token in its place.";
  if (!draw) {
    return (
      {
        greedy: "Greedy: the likeliest token was taken, nothing was drawn.",
        beam_search: "Found by beam search: nothing was drawn.",
        forced: "Given, not chosen: a forced continuation.",
      }[record.generation.strategy] ?? ""
    );
  }
  if (draw.margin === undefined || draw.runner_up_token_id === undefined)
    return "Drawn at random; no other token could be.";
  const factor = rounded(Math.exp(draw.margin ?? Infinity));
  const runnerUp = worded(textOf(record, draw.runner_up_token_id));
  return `Drawn at random. Were it ${factor} times less likely, “${runnerUp}” would stand here.`;
}

function sourceDetails(step, { record, prompt, position, textAt }) {
  if (!step.sources || prompt) return unavailable(record, "sources", "What it drew on");
  const newest = position - 1;
  const listed = [...sharesByPosition(step, newest)].sort((a, b) => b[1] - a[1]);
  const most = listed[0]?.[1] || 1;
  const rows = listed.map(([at, share]) => {
    const cells = [
      wordCell(textAt(at)),
      cell("bar", barsOf(bar("share", share / most))),
      cell("", percent(share)),
    ];
    const row = make("tr", "", ...cells, cell("", at === newest ? `${at}, newest` : `${at}`));
    row.dataset.position = at;
    row.tabIndex = 0;
    return row;
  });
  const out = [
    make("h3", "", "What it drew on"),
    ...shortened(["", "", "share", "position"], rows, NUM_SOURCES),
  ];
  const sink = step.sources.sink_share;
  const rest = 1 - (sink ?? 0) - listed.reduce((sum, [, share]) => sum + share, 0);
  const [method, weights] = (record.generation.source_method ?? "").split(";");
  const by = METHODS[method] ?? method;
  const said = [SOURCES_SAY];
  if (by) said.push(`By ${visible(by)}${weights ? `, ${visible(weights)}` : ""}.`);
  if (sink !== undefined) said.push(`${percent(sink)} went to a sink: ${SINK_SAYS}`);
  if (rest >= 0.0005) said.push(`The other ${percent(rest)} is spread over positions not listed.`);
  return [...out, make("p", "", said.join(" "))];
}

function layerDetails(step, record) {
  if (!step.layers) return unavailable(record, "layers", "How it formed");
  const rows = layerRuns(step.layers).map(({ first, last, share, leader }) => {
    const leads = leader !== null && leader === step.token_id;
    const cells = [
      cell("", first === last ? `${first}` : `${first}–${last}`),
      cell("bar", barsOf(bar("layer", share))),
    ];
    return make(
      "tr",
      leads ? "chosen" : "",
      ...cells,
      cell("", percent(share)),
      wordCell(textOf(record, leader)),
    );
  });
  const table = tableOf(["layer", "", "this token", "leading"], ...rows);
  table.className = "layers";
  return [make("h3", "", "How it formed through the layers"), table, make("p", "", LAYERS_SAY)];
}

/** A row for each layer; of many, one for each run with the same leader, as its last has it. */
function layerRuns({ shares, leaders }) {
  const runs = [];
  shares.forEach((share, layer) => {
    const leader = leaders[layer] ?? null;
    const before = runs.at(-1);
    if (shares.length > MOST_LAYERS && before?.leader === leader)
      Object.assign(before, { last: layer, share });
    else runs.push({ first: layer, last: layer, share, leader });
  });
  return runs;
}

function unavailable(record, part, heading) {
  const why = record.generation.unavailable[part];
  return why ? [make("h3", "", heading), make("p", "", `Not on record: ${visible(why)}.`)] : [];
}

function timingDetails(step) {
  if (!step.timing) return [];
  const {
    elapsed_ns: elapsed,
    forward_ns: forward,
    select_ns: select,
    batch_size: size,
    context_length: length,
  } = step.timing;
  const others = size > 1 ? `, together with ${size - 1} other${size > 2 ? "s" : ""}` : "";
  const said = [
    `Ready ${duration(elapsed)} after the request.`,
    `Forward pass ${duration(forward)}, choice ${duration(select)}${others};`,
    `${length.toLocaleString("en")} positions of context.`,
  ].join(" ");
  return [make("h3", "", "What it cost"), make("p", "", said)];
}
