// How likely an output is elsewhere: read by another generation's model after its prompt.

import { compute } from "./requests.js";

// Such a reading is a generation on record as well.
const LABELS = { "whence.page": "likelihood" };

/** Bits for each token of an output under its own model, and their number. */
export function ownLikelihood({ sequences }) {
  const steps = sequences[0]?.steps ?? [];
  return meanBits(steps.map(({ logprob }) => logprob));
}

/** The same of the output of `own`, read after the prompt of `other` by the model of `other`. */
export async function likelihoodElsewhere(own, other, signal) {
  const { generation, prompt } = other;
  const output = own.sequences[0];
  const ids = output.steps.map(({ token_id: id }) => id);
  const isSame = own.generation.digests.tokenizer === generation.digests.tokenizer;
  const canShare = isSame && ids.every((id) => id >= 0);
  const input = prompt.token_ids.length ? { tokens: { tokenIds: prompt.token_ids } } : { prompt: prompt.text };
  const request = {
    ...input,
    model: generation.model,
    ...(generation.adapter && { adapter: generation.adapter.name }),
    decoding: { forced: canShare ? { tokens: { tokenIds: ids } } : { text: output.text } },
    trace: { detail: "TRACE_DETAIL_TOKENS" },
    labels: LABELS,
  };
  const logprobs = [];
  for await (const { event = {} } of compute("/generations", request, signal))
    for (const { logprob } of event.steps?.steps ?? []) logprobs.push(Number(logprob));
  return meanBits(logprobs);
}

function meanBits(logprobs) {
  const known = logprobs.filter((each) => each !== undefined && each !== null);
  const sum = known.reduce((total, each) => total - each / Math.LN2, 0);
  return { bits: known.length ? sum / known.length : NaN, count: known.length };
}
