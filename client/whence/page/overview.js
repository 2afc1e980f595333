// The panel where no token is chosen: the generation at a glance.

import { make, percent, probability, visible, wordParts } from "./parts.js";
import { ownText, surprise } from "./text.js";

const UNKNOWN_SAYS = "The model's vocabulary was not at hand: tokens are named by their ids.";

/** The generation at a glance, with its most surprising tokens; `choose` takes a key. */
export function overview(record, sequence, choose) {
  if (!sequence) return [make("h3", "", "No token was generated")];
  const known = sequence.steps.filter((step) => surprise(step) !== undefined);
  const mean = known.reduce((sum, step) => sum + surprise(step), 0) / known.length;
  const out = [
    make("h3", "", "Choose a token"),
    make(
      "p",
      "",
      "by a click, or with the arrow keys: what else was likely, how it was chosen, " +
        "what it drew on, how it formed.",
    ),
  ];
  const grid = make("div", "tiles");
  const add = (value, name) => grid.append(make("div", "", make("b", "", value), name));
  add(sequence.steps.length.toLocaleString("en"), "tokens");
  if (known.length && Number.isFinite(mean)) add(Math.abs(mean).toFixed(2), "bits a token");
  if (sequence.finish_reason) add(visible(sequence.finish_reason.replaceAll("_", " ")), "finished");
  if (sequence.constraint_complete !== undefined)
    add(sequence.constraint_complete ? "complete" : "cut off", "under the constraint");
  if (sequence.num_reasoning_steps) add(sequence.num_reasoning_steps.toLocaleString("en"), "of reasoning");
  out.push(grid, ...toolCalls(sequence, choose));
  if (!Object.keys(record.vocabulary).length) out.push(make("p", "", UNKNOWN_SAYS));
  if (!known.length) return out;
  const list = make("ol", "list");
  for (const step of [...known].sort((a, b) => surprise(b) - surprise(a)).slice(0, 12)) {
    const text = ownText(record, step);
    const button = make(
      "button",
      "",
      make("q", "", ...wordParts(text)),
      make("span", "soft", `step ${step.index}`),
      make("span", "number", percent(probability(step.logprob))),
    );
    button.type = "button";
    button.addEventListener("click", () => choose(`${sequence.index}.${step.index}`));
    list.append(make("li", "", button));
  }
  return [...out, make("h3", "", "Most surprising: the least likely tokens"), list];
}

/** The tool calls of an output; each leads to its first token. */
function toolCalls(sequence, choose) {
  if (!sequence.tool_calls) return [];
  const list = make("ol", "list");
  for (const call of sequence.tool_calls) {
    const shown = make("q", "", ...wordParts(`${call.name} ${call.arguments}`));
    const button = make("button", "", shown, make("span", "soft", visible(call.id)));
    button.type = "button";
    button.disabled = call.step === null;
    button.addEventListener("click", () => choose(`${sequence.index}.${call.step}`));
    list.append(make("li", "", button));
  }
  return [make("h3", "", "Tool calls"), list];
}
