// Which parts of the context caused a token, computed on request, and how far to trust it.

import { button, choiceOf, field, make, visible } from "./elements.js";
import { bar, cell, tableOf, wordCell } from "./parts.js";
import { compute } from "./requests.js";
import { state } from "./server.js";

const METHODS = [
  ["", "the server's default"],
  ["EXPLAIN_METHOD_LEAVE_ONE_OUT", "leave one out"],
  ["EXPLAIN_METHOD_ABLATION", "random ablations"],
  ["EXPLAIN_METHOD_GRADIENT", "gradient times input"],
  ["EXPLAIN_METHOD_INTEGRATED_GRADIENTS", "integrated gradients"],
  ["EXPLAIN_METHOD_FLOW", "information flow"],
];
const VERDICTS = {
  TRUST_VERDICT_HIGH: "high: the scores predict well what taking text away changes",
  TRUST_VERDICT_MODERATE: "moderate: the scores predict it in part",
  TRUST_VERDICT_LOW: "low: the scores hardly predict what taking text away changes",
  TRUST_VERDICT_UNDETERMINED: "undetermined: too little was measured to say anything",
};
const NUM_SHOWN = 12;

/** The part of a token's panel that explains it. */
export function explainPart(place, shown, step, key) {
  if (!state().offers.has("explain")) return [];
  const [sequence] = key.split(".").map(Number);
  const result = make("div", "");
  result.setAttribute("role", "status");
  const method = choiceOf("method", METHODS);
  const span = { sequenceIndex: sequence, beginStep: step.index };
  const run = button("Explain this token", async () => {
    const stop = new AbortController();
    place.signal.addEventListener("abort", () => stop.abort());
    run.disabled = true;
    result.replaceChildren(make("p", "", "Computing … ", button("Stop", () => stop.abort())));
    const request = { recorded: span, ...(method.value && { method: method.value }) };
    try {
      await explain(shown.id, request, stop.signal, result);
    } catch (error) {
      const words = stop.signal.aborted ? "Stopped." : `Not explained: ${visible(error.message)}.`;
      result.replaceChildren(make("p", "", words));
    }
    run.disabled = false;
  });
  const heading = make("h3", "", "What caused it");
  return [heading, make("div", "choices", field("Method", method), run), result];
}

async function explain(id, request, signal, result) {
  const path = `/generations/${encodeURIComponent(id)}:explain`;
  for await (const { progress, partial, result: found } of compute(path, request, signal)) {
    if (progress) sayProgress(result, progress);
    if (partial ?? found) result.replaceChildren(...describe(partial ?? found));
  }
}

function sayProgress(result, { phase = "", done = 0, total = 0 }) {
  const words = phase.replace("EXPLAIN_PHASE_", "").toLowerCase();
  const line = result.querySelector("p");
  if (line) line.firstChild.textContent = `Computing: ${words} ${total ? `${done} of ${total}` : ""} `;
}

function describe(explanation) {
  const { segments = [], scores = [], isPartial, trust, method = "" } = explanation;
  const most = Math.max(...scores.map((score) => Math.abs(Number(score))), 1e-12);
  const rows = segments.map((segment, i) => ({ segment, score: Number(scores[i] ?? 0) }));
  rows.sort((a, b) => Math.abs(b.score) - Math.abs(a.score));
  const lines = rows.slice(0, NUM_SHOWN).map(({ segment, score }) =>
    make(
      "tr",
      "",
      wordCell(segment.text || `positions ${segment.begin ?? 0} to ${segment.end - 1}`),
      cell("bar", make("div", "bars", bar(score < 0 ? "drawn" : "share", Math.abs(score) / most))),
      cell("", `${score > 0 ? "+" : ""}${score.toFixed(2)}`),
    ),
  );
  const said = [];
  said.push(`By ${method.replace("EXPLAIN_METHOD_", "").toLowerCase().replaceAll("_", " ")}.`);
  said.push("A positive score: this part made the token more likely; a negative one: less.");
  if (isPartial) said.push("First scores; better ones follow.");
  return [
    tableOf(["part of the context", "", "score"], ...lines),
    make("p", "", said.join(" ")),
    ...(trust ? [make("p", "said", sayTrust(trust))] : []),
  ];
}

function sayTrust({ verdict = "", correlation, correlationLow, correlationHigh, numAblations }) {
  if (!numAblations) return "Trust: undetermined: too few segments to measure it.";
  const number = (value) => Number(value ?? 0).toFixed(2);
  const range = `${number(correlationLow)} to ${number(correlationHigh)}`;
  const words = VERDICTS[verdict] ?? verdict;
  return `Trust: ${words} (rank correlation ${number(correlation)}, ${range}, over ${numAblations} ablations).`;
}
