// A generation as the views show it, from the contract's JSON.
//
// client/whence/page/record.py makes the same of the same messages, for the self-contained page.

const GRADES = {
  tokenIds: "TOKEN_ID_ORIGIN_",
  distribution: "DISTRIBUTION_KIND_",
  secondDistribution: "SECOND_DISTRIBUTION_",
  seed: "SEED_ORIGIN_",
  draw: "DRAW_ORIGIN_",
  tables: "TABLE_COVERAGE_",
  weights: "WEIGHTS_ORIGIN_",
};
const POLICIES = {
  CONTENT_POLICY_TOKENS: "token ids and numbers, no text (tokens)",
  CONTENT_POLICY_NONE: "numbers, no text and no token ids (none)",
};

/** A record without tokens; `vocabulary` is null where it is not known. */
export function makeRecord(started, vocabulary) {
  const ids = started.promptTokenIds ?? [];
  const record = {
    generation: describeStart(started),
    prompt: {
      text: started.prompt ?? "",
      num_tokens: started.numPromptTokens || ids.length,
      token_ids: ids,
      texts: vocabulary ? vocabulary.textsOf(ids) : [],
      steps: [],
    },
    sequences: [],
    text: "",
    vocabulary: {},
  };
  const named = record.generation.trace.logprob_token_ids ?? [];
  const told = { numbers: new Map() };
  Object.defineProperty(record, "sources", { value: { vocabulary, told } });
  nameTokens(record, [...ids, ...named]);
  return record;
}

/** Adds generated steps. */
export function addSteps(record, steps) {
  for (const step of steps) {
    const index = step.sequenceIndex ?? 0;
    let sequence = record.sequences.find((each) => each.index === index);
    if (!sequence) {
      sequence = { index, text: "", steps: [] };
      Object.defineProperty(sequence, "ranges", { value: [] });
      record.sequences.push(sequence);
      record.sequences.sort((a, b) => a.index - b.index);
    }
    sequence.text += step.text ?? "";
    sequence.steps.push(describeStep(record, step));
    const { textBeginByte: begin = 0, textEndByte: end = 0, reasoningText = "" } = step;
    sequence.ranges.push({ begin, end, reasons: reasoningText !== "" });
  }
  record.text = record.sequences[0]?.text ?? "";
}

/** Adds steps of the prompt. */
export function addPromptSteps(record, steps) {
  record.prompt.steps.push(...steps.map((step) => describeStep(record, step)));
}

/** Adds the end of the generation. */
export function addFinish(record, finished) {
  const { generation } = record;
  generation.finish_reason = nameReason(finished.finishReason);
  generation.finished = {
    queue_ns: Number(finished.queueNs ?? 0),
    prefill_ns: Number(finished.prefillNs ?? 0),
    decode_ns: Number(finished.decodeNs ?? 0),
  };
  record.prompt.num_tokens ||= finished.numPromptTokens ?? 0;
  if (finished.failure)
    generation.failure = `${finished.failure.message ?? ""} (${finished.failure.reason ?? ""})`;
  const signer = findSigner(finished);
  if (signer) generation.signed = `by key ${signer}`;
  for (const result of finished.sequences ?? []) {
    const index = result.sequenceIndex ?? 0;
    const sequence = record.sequences.find((each) => each.index === index);
    if (sequence) Object.assign(sequence, describeResult(result, sequence));
  }
}

/** "end_of_sequence" for the contract's name of a reason. */
export function nameReason(reason) {
  const name = (reason ?? "").replace("FINISH_REASON_", "").toLowerCase();
  return name === "unspecified" ? "unknown" : name;
}

function describeStart(started) {
  const { environment = {}, adapter } = started;
  const decoding = started.effectiveDecoding ?? {};
  const strategies = ["greedy", "sample", "beamSearch", "forced"];
  const strategy = strategies.find((name) => name in decoding) ?? "";
  const facts = {
    id: started.generationId,
    trace_id: started.traceId ?? "",
    model: started.model ?? "",
    start_time: started.startTime ?? "",
    strategy: strategy === "beamSearch" ? "beam_search" : strategy,
    decoding: withSnakeKeys(decoding),
    trace: withSnakeKeys(started.effectiveTrace ?? {}),
    processor_names: started.processorNames ?? [],
    source_method: started.sourceMethod ?? "",
    unavailable: started.unavailable ?? {},
    labels: started.labels ?? {},
    digests: {
      model: started.modelDigest ?? "",
      weights: environment.weightsDigest ?? "",
      adapter: adapter?.digest ?? "",
      "adapter's weights": adapter?.weightsDigest ?? "",
      tokenizer: started.tokenizerDigest ?? "",
      request: started.requestDigest ?? "",
    },
    environment: withSnakeKeys(environment),
    grades: describeGrades(started.observation ?? {}),
  };
  if (POLICIES[started.content]) facts.content_kept = POLICIES[started.content];
  if (started.upstream) facts.upstream = describeUpstream(started.upstream);
  if (adapter) facts.adapter = withSnakeKeys(adapter);
  if (started.constraintEngine) facts.constraint_engine = started.constraintEngine;
  if (started.configuredDecoding)
    facts.configured_decoding = withSnakeKeys(started.configuredDecoding);
  if (started.trainingRun) facts.training_run = withSnakeKeys(started.trainingRun);
  return facts;
}

function describeGrades(observation) {
  return Object.entries(GRADES)
    .filter(([field]) => observation[field])
    .map(([field, prefix]) => {
      const grade = String(observation[field]).replace(prefix, "");
      return `${snake(field)} ${grade}`.toLowerCase().replaceAll("_", " ");
    })
    .join(", ");
}

function describeUpstream({ kind, version, url, model, claimedFiles }) {
  const files = claimedFiles ? `, files ${claimedFiles}` : "";
  return `${kind}${version ? ` ${version}` : ""} at ${url}, model ${model}${files}`;
}

function findSigner(finished) {
  try {
    const key = JSON.parse(atob(finished.statement.envelope)).signatures[0].keyid;
    return typeof key === "string" ? key.slice(0, 64) : "";
  } catch {
    return "";
  }
}

function describeResult(result, { steps, ranges }) {
  const shown = { finish_reason: nameReason(result.finishReason), stop: result.stop ?? "" };
  if (result.constraintComplete !== undefined)
    shown.constraint_complete = result.constraintComplete;
  if (result.toolCalls)
    shown.tool_calls = result.toolCalls.map(({ call = {}, textBeginByte = 0 }) => ({
      id: call.id ?? "",
      name: call.name ?? "",
      arguments: call.argumentsJson ?? "",
      step: steps[ranges.findIndex(({ begin, end }) => begin <= textBeginByte && textBeginByte < end)]
        ?.index ?? null,
    }));
  if (result.reasoning) {
    const { textBeginByte: first = 0, textEndByte: last = 0 } = result.reasoning;
    const isReasoning = ({ begin, reasons }) => (first <= begin && begin < last) || reasons;
    shown.num_reasoning_steps = ranges.filter(isReasoning).length;
  }
  return shown;
}

function describeStep(record, step) {
  const shown = { index: step.index ?? 0, text: step.text ?? "" };
  if (step.tokenId !== undefined) shown.token_id = step.tokenId;
  if (step.rank !== undefined) shown.rank = step.rank;
  for (const name of ["logprob", "samplingLogprob", "entropy", "samplingEntropy"])
    if (step[name] !== undefined) shown[snake(name)] = number(step[name]);
  if (step.candidates)
    shown.candidates = {
      token_ids: step.candidates.tokenIds ?? [],
      ...describeLogprobs(step.candidates),
    };
  if (step.requestedLogprobs) shown.requested = describeLogprobs(step.requestedLogprobs);
  if (step.processors)
    shown.processors = {
      num_kept: step.processors.numKept ?? [],
      removed_mass: numbers(step.processors.removedMass),
      token_logprobs: numbers(step.processors.tokenLogprobs),
    };
  if (step.draw) shown.draw = describeDraw(step.draw);
  if (step.timing) shown.timing = describeTiming(step.timing);
  if (step.internals) Object.assign(shown, describeInternals(step, step.internals));
  if (step.redactions) shown.redacted = true;
  addToldTokens(record, step, shown);
  const ids = [...(step.candidates?.tokenIds ?? []), step.tokenId, step.draw?.runnerUpTokenId];
  nameTokens(record, ids);
  return shown;
}

function describeLogprobs(table) {
  return {
    logprobs: numbers(table.logprobs),
    sampling_logprobs: numbers(table.samplingLogprobs),
  };
}

function describeDraw(draw) {
  const shown = { noise: number(draw.noise ?? 0) };
  if (draw.runnerUpTokenId !== undefined) shown.runner_up_token_id = draw.runnerUpTokenId;
  if (draw.margin !== undefined) shown.margin = number(draw.margin);
  return shown;
}

function describeTiming(timing) {
  return {
    elapsed_ns: Number(timing.elapsedNs ?? 0),
    forward_ns: Number(timing.forwardNs ?? 0),
    select_ns: Number(timing.selectNs ?? 0),
    batch_size: timing.batchSize ?? 0,
    context_length: timing.contextLength ?? 0,
  };
}

function describeInternals(step, internals) {
  const shown = {};
  if (internals.sourcePositions || internals.selfShare !== undefined) {
    shown.sources = {
      positions: internals.sourcePositions ?? [],
      shares: numbers(internals.sourceShares),
    };
    if (internals.selfShare !== undefined) shown.sources.self_share = number(internals.selfShare);
    if (internals.sinkShare !== undefined) shown.sources.sink_share = number(internals.sinkShare);
  }
  if (internals.layerShares) {
    const ids = step.candidates?.tokenIds ?? [];
    const idOf = (leader) => ids[leader] ?? (ids.length ? (step.tokenId ?? null) : null);
    shown.layers = {
      shares: numbers(internals.layerShares),
      leaders: (internals.layerLeaders ?? []).map(idOf),
    };
  }
  return shown;
}

/** Numbers below zero for tokens that an upstream tells by text alone. */
function addToldTokens(record, step, shown) {
  const { numbers: known } = record.sources.told;
  const note = (id, text) => {
    if (text) record.vocabulary[id] = text;
    return id;
  };
  const find = (text) => {
    if (!known.has(text)) known.set(text, -1 - known.size);
    return note(known.get(text), text);
  };
  if (step.tokenText && step.tokenId !== undefined) note(step.tokenId, step.tokenText);
  else if (step.tokenText) shown.token_id = find(step.tokenText);
  const table = step.candidates ?? {};
  if (!table.texts) return;
  if (table.tokenIds) table.tokenIds.forEach((id, i) => note(id, table.texts[i]));
  else
    shown.candidates = {
      token_ids: table.texts.map(find),
      logprobs: numbers(table.textLogprobs),
      sampling_logprobs: numbers(table.textSamplingLogprobs),
    };
}

function nameTokens(record, ids) {
  const { vocabulary } = record.sources;
  if (!vocabulary) return;
  for (const id of ids)
    if (id !== undefined && !(id in record.vocabulary)) record.vocabulary[id] = vocabulary.textOf(id);
}

/** A number of JSON's mapping of protobuf, with five digits; null stands for minus infinity, and for no number. */
function number(value) {
  const found = Number(value);
  return Number.isFinite(found) ? Number(found.toPrecision(5)) : null;
}

function numbers(values) {
  return (values ?? []).map(number);
}

/** The same with the contract's names of fields; keys of maps are no names, but seldom differ. */
export function withSnakeKeys(value) {
  if (Array.isArray(value)) return value.map(withSnakeKeys);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, each]) => [snake(name), withSnakeKeys(each)]),
  );
}

function snake(name) {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}
