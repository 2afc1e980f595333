// A generation's facts: the line above its text, and its provenance.

import { make, visible } from "./parts.js";

/** The line of facts, as elements and text. */
export function factsLine(record) {
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
  return [make("b", "", visible(name)), ` · ${visible(parts.join(" · "))}`];
}

/** Where a generation came from, as terms and descriptions of a list. */
export function provenance(record) {
  const { generation } = record;
  const { adapter, digests, environment, decoding, trace, labels } = generation;
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
  return Object.entries(facts)
    .filter(([, value]) => value && value !== "{}")
    .flatMap(([name, value]) => [make("dt", "", visible(name)), make("dd", "", visible(value))]);
}
