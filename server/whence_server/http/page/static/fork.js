// "What if this one instead?": branches of a generation at one of its tokens.

import { button, make, visible } from "./elements.js";
import { start } from "./starting.js";
import { state } from "./server.js";
import { worded } from "./parts.js";
import { textOf } from "./text.js";

const MOST_CHOICES = 6;

/** The part of a token's panel that starts branches there. */
export function forkPart(place, shown, step, key) {
  if (!state().offers.has("fork") || step.token_id === undefined || step.token_id < 0) return [];
  const { record } = shown;
  const [sequence] = key.split(".").map(Number);
  const said = make("p", "wrong");
  said.setAttribute("role", "alert");
  const branch = async (instead) => {
    said.textContent = "";
    try {
      const request = { sequenceIndex: sequence, step: step.index, ...instead };
      await start(`/generations/${encodeURIComponent(shown.id)}:fork`, request, place);
    } catch (error) {
      if (!place.signal.aborted) said.textContent = `${visible(error.message)}.`;
    }
  };
  const others = (step.candidates?.token_ids ?? []).filter((id) => id !== step.token_id && id >= 0);
  const choices = others.slice(0, MOST_CHOICES).map((id) =>
    button(`“${worded(textOf(record, id))}”`, () => branch({ instead: { tokens: { tokenIds: [id] } } })),
  );
  if (record.generation.strategy === "sample")
    choices.push(button("drawn again, with another seed", () => branch({ decoding: { sample: { seed: randomSeed() } } })));
  if (!choices.length) return [];
  return [
    make("h3", "", "What if another token were here?"),
    make("p", "", "A branch has the same tokens up to here, then this one, and goes on from it."),
    make("p", "choices", ...choices),
    said,
  ];
}

function randomSeed() {
  return String(crypto.getRandomValues(new Uint32Array(1))[0]);
}
