"""Every name that whence's spans carry, with the field that it is read from.

docs/telemetry declares names, types and meanings; a test compares this module with it.

The sources of what is not `whence.*`, all of them OpenTelemetry's semantic conventions:

- `gen_ai.*`: docs/gen-ai/client-inference.md of open-telemetry/semantic-conventions-genai;
- `rpc.*`: docs/rpc/grpc.md of open-telemetry/semantic-conventions;
- `server.*`, `client.*`, `error.*` and `exception.*`: its docs/registry/attributes, and for the
  event `exception` docs/exceptions/exceptions-spans.md.

`gen_ai.*` is on the GenAI span and on the events of steps alone: backends take every span that has
one for a model call. Spans of steps carry `whence.*`. Logprobs and entropies are in nats, times in
nanoseconds. Content (text of prompts, outputs and tokens) is in none of them unless `content.py`
says so.
"""

from typing import Final

PROVIDER: Final = "whence"
"""The value of `gen_ai.provider.name`."""

# ---- span names: constant, numbers go in attributes ----

QUEUE: Final = "queue"
"""Time from the request's arrival to the start of its prefill, or to the end if it never began."""
PREFILL: Final = "prefill"
"""Time from the start of the prefill until the prompt was read, or to the end if it never was."""
BEAM_ROUND: Final = "beam_round"
"""Beam search only: the forward pass for all beams, and the choice of those that go on."""
DECODE: Final = "decode"
"""One for each returned sequence: from its first step to its last."""
DECODE_STEP: Final = "decode_step"
"""One token: the forward pass that predicted it, and its choice. A sequence's first token comes
of the prompt's own forward pass, which `prefill` stands for: its span is the choice alone. With
`--step-span-names token` the token's name follows."""
DECODE_BLOCK: Final = "decode_block"
"""Consecutive tokens, at most `blocks.STEPS_PER_BLOCK`, beyond those that have spans."""

# ---- event names ----

EXCEPTION: Final = "exception"
"""On the GenAI span of a generation that failed."""
FIRST_TOKEN: Final = "whence.generation.first_token"  # noqa: S105 - an event's name
"""On the GenAI span, as all that follow: the earliest step. Absent for beam search, whose steps are
streamed at its end."""
READER_LEFT: Final = "whence.generation.reader_left"
"""A call that read the generation ended first: Occurrence.reader_left."""
READER_JOINED: Final = "whence.generation.reader_joined"
"""A call began to read the generation, besides the one that started it: reader_joined."""
ENGINE_ENDED: Final = "whence.generation.engine_ended"
"""The engine process ended: Occurrence.engine_ended."""
ENGINE_RESUMED: Final = "whence.generation.engine_resumed"
"""A new engine process continues the generation: Occurrence.engine_resumed."""
CANCELLED: Final = "whence.generation.cancelled"
"""Occurrence.cancelled: by a call, or because no call read the generation."""
MAX_DURATION_PASSED: Final = "whence.generation.max_duration_passed"
"""The request's deadline for the generation: Occurrence.max_duration_passed."""
SEQUENCE_STOPPED: Final = "whence.sequence.stopped"
"""A sequence ended with an end-of-sequence token, a stop token or a stop string."""
AUDIT: Final = "whence.audit"
"""A log record: what callers did, AuditRecord."""
OPERATION_DETAILS: Final = "gen_ai.client.inference.operation.details"
"""A log record: the GenAI span's attributes without those that are counted over its steps, and the
content, where that is wanted."""

TOKEN_SCHEDULED: Final = "gen_ai.token.scheduled"  # noqa: S105 - an event's name
"""On `decode`, where steps are events: the step began."""
TOKEN_GENERATED: Final = "gen_ai.token.generated"  # noqa: S105 - an event's name
"""On `decode`, where steps are events: the token was chosen."""

# ---- on the SERVER span: from Call ----

RPC_SYSTEM_NAME: Final = "rpc.system.name"
"""Always "grpc"."""
RPC_METHOD: Final = "rpc.method"
"""Fully qualified, as in "whence.v1.GenerationService/Generate": Call.method."""
RPC_RESPONSE_STATUS_CODE: Final = "rpc.response.status_code"
"""The status code's name: Call.status_code."""
HTTP_REQUEST_METHOD: Final = "http.request.method"
"""HttpExchange.method; on the SERVER span of an HTTP request, in place of the `rpc` attributes."""
HTTP_ROUTE: Final = "http.route"
"""HttpExchange.route."""
HTTP_RESPONSE_STATUS_CODE: Final = "http.response.status_code"
"""HttpExchange.status_code."""
URL_PATH: Final = "url.path"
"""HttpExchange.route: the routes of generations have no variable parts."""
URL_SCHEME: Final = "url.scheme"
"""Always "http"."""
SERVER_ADDRESS: Final = "server.address"
"""An address, or the path of a Unix socket: Call.server_address."""
SERVER_PORT: Final = "server.port"
"""Absent for a Unix socket: Call.server_port."""
ERROR_TYPE: Final = "error.type"
"""Only with status ERROR: the gRPC status code's name, the HTTP status of 500 or more, or on the
GenAI span Failure.reason."""
ERROR_REASON: Final = "whence.error.reason"
"""ErrorInfo.reason as the caller received it: CallError.reason. Absent for the server's own errors,
as the next two."""
ERROR_FIELD: Final = "whence.error.field"
"""Path of the first field at fault: CallError.field; absent if no field is at fault."""
ERROR_MESSAGE: Final = "whence.error.message"
"""Status message without the caller's content, at most 300 characters: CallError.message."""
EXCEPTION_TYPE: Final = "exception.type"
"""On the SERVER span, only for an error inside the server: CallError.exception_type. On the
`exception` event: Failure.reason."""
EXCEPTION_MESSAGE: Final = "exception.message"
"""On the `exception` event: Failure.message; absent where it may quote content that spans may not
carry."""

# ---- on the GenAI span: from GenerationStarted and GenerationFinished ----

GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
"""GenerationStarted.operation: "text_completion" or "chat"."""
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_CONVERSATION_ID: Final = "gen_ai.conversation.id"
"""The label of this name in GenerationStarted.labels; not sent as `whence.label.*` too."""
GEN_AI_OUTPUT_TYPE: Final = "gen_ai.output.type"
"""The kind of the output: "json" for a constraint that is a JSON Schema, else "text"."""
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
"""GenerationStarted.model."""
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
"""Decoding.max_new_tokens."""
GEN_AI_REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
"""Decoding.num_return_sequences; absent where it is one, as the conventions have it."""
GEN_AI_REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
"""Decoding.stop; absent where there are none."""
GEN_AI_REQUEST_STREAM: Final = "gen_ai.request.stream"
"""Always true: tokens are streamed as they come."""
GEN_AI_REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
"""Sample.temperature: for sampling only."""
GEN_AI_REQUEST_TOP_K: Final = "gen_ai.request.top_k"
"""Sample.top_k: for sampling only; 0 is off."""
GEN_AI_REQUEST_TOP_P: Final = "gen_ai.request.top_p"
"""Sample.top_p: for sampling only."""
GEN_AI_REQUEST_SEED: Final = "gen_ai.request.seed"
"""Sample.seed; absent where it is above 2^63 - 1, which OTLP's integers cannot hold."""
GEN_AI_RESPONSE_ID: Final = "gen_ai.response.id"
"""The generation id."""
GEN_AI_RESPONSE_MODEL: Final = "gen_ai.response.model"
"""GenerationStarted.model."""
GEN_AI_RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
"""One for each sequence: "stop", "length", "error", or whence's own reason in lower case."""
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
"""Seconds by the server's clock: the earliest StepTiming.elapsed_ns. Absent without a token,
and for beam search, whose steps are streamed at its end."""
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
"""GenerationFinished.num_prompt_tokens."""
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
"""GenerationFinished.num_cached_prompt_tokens, which input_tokens includes; absent where it is."""
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
"""GenerationFinished.num_generated_tokens."""
GEN_AI_INPUT_MESSAGES: Final = "gen_ai.input.messages"
"""Content: ChatRecord.input's messages, or GenerationStarted.prompt as one message; JSON on spans,
structured on events."""
GEN_AI_OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
"""Content: SequenceResult.text, one message for each sequence, with reasoning and tool calls as
parts of their own; in form as the input's."""
GEN_AI_TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
"""Content: ChatInput.tools_json, or the template argument `tools`; in form as the messages."""

GENERATION_ID: Final = "whence.generation.id"
"""On every span of the generation."""
GENERATION_FINISH_REASON: Final = "whence.generation.finish_reason"
"""FinishReason of the generation as a whole, or of one sequence on its `decode` span."""
GENERATION_QUEUE_NS: Final = "whence.generation.queue_ns"
"""GenerationFinished.queue_ns."""
GENERATION_PREFILL_NS: Final = "whence.generation.prefill_ns"
"""GenerationFinished.prefill_ns."""
GENERATION_DECODE_NS: Final = "whence.generation.decode_ns"
"""GenerationFinished.decode_ns."""
REQUEST_DIGEST: Final = "whence.request.digest"
"""GenerationStarted.request_digest."""
MODEL_DIGEST: Final = "whence.model.digest"
"""GenerationStarted.model_digest."""
TOKENIZER_DIGEST: Final = "whence.tokenizer.digest"
"""GenerationStarted.tokenizer_digest."""
WEIGHTS_DIGEST: Final = "whence.weights.digest"
"""Environment.weights_digest: what really computed, together with an adapter of the request."""
OBSERVATION_TOKEN_IDS: Final = "whence.observation.token_ids"  # noqa: S105 - an attribute's name
"""Observation.token_ids, as the others of this name: how each part of the record was obtained."""
OBSERVATION_DISTRIBUTION: Final = "whence.observation.distribution"
"""Observation.distribution."""
OBSERVATION_SECOND_DISTRIBUTION: Final = "whence.observation.second_distribution"
"""Observation.second_distribution."""
OBSERVATION_SEED: Final = "whence.observation.seed"
"""Observation.seed."""
OBSERVATION_DRAW: Final = "whence.observation.draw"
"""Observation.draw."""
OBSERVATION_TABLES: Final = "whence.observation.tables"
"""Observation.tables."""
OBSERVATION_WEIGHTS: Final = "whence.observation.weights"
"""Observation.weights."""
UPSTREAM_KIND: Final = "whence.upstream.kind"
"""UpstreamInfo.kind, with the next three where an upstream computed the tokens."""
UPSTREAM_VERSION: Final = "whence.upstream.version"
"""UpstreamInfo.version."""
UPSTREAM_URL: Final = "whence.upstream.url"
"""UpstreamInfo.url."""
UPSTREAM_MODEL: Final = "whence.upstream.model"
"""UpstreamReport.model, or UpstreamInfo.model before it is known."""
UPSTREAM_FINGERPRINT: Final = "whence.upstream.fingerprint"
"""UpstreamReport.fingerprint."""
ADAPTER_NAME: Final = "whence.adapter.name"
"""AppliedAdapter.name, with the next two where the request named an adapter. The digests of model
and weights are then those of its base, without the adapter's layers."""
ADAPTER_DIGEST: Final = "whence.adapter.digest"
"""AppliedAdapter.digest: the adapter's files."""
ADAPTER_WEIGHTS_DIGEST: Final = "whence.adapter.weights_digest"
"""AppliedAdapter.weights_digest: the adapter's tensors."""
TRAINING_RUN_ID: Final = "whence.training.run_id"
"""TrainingRunRef.training_run_id, with the next three where the run that made the weights is known.
The span has a link to the run's root span as well; these repeat it for backends that show no links
to other traces."""
TRAINING_TRACE_ID: Final = "whence.training.trace_id"
"""TrainingRunRef.trace_id: 32 hex digits."""
TRAINING_SPAN_ID: Final = "whence.training.span_id"
"""TrainingRunRef.span_id: 16 hex digits."""
TRAINING_STEP: Final = "whence.training.step.number"
"""TrainingRunRef.step: the optimizer step after which the weights were saved."""
FORK_PARENT_ID: Final = "whence.fork.parent.generation_id"
"""Fork.parent_generation_id, with the next six on a branch alone. The span has a link to the
parent's GenAI span as well."""
FORK_PARENT_TRACE_ID: Final = "whence.fork.parent.trace_id"
"""Fork.parent_trace_id: 32 hex digits."""
FORK_SEQUENCE_INDEX: Final = "whence.fork.sequence_index"
"""Fork.sequence_index."""
FORK_STEP: Final = "whence.fork.step"
"""Fork.step."""
FORK_NUM_FORCED_STEPS: Final = "whence.fork.num_forced_steps"
"""Fork.num_forced_steps."""
FORK_CHANGES_PROMPT: Final = "whence.fork.changes_prompt"
"""Fork.changes_prompt."""
FORK_CHANGED_SETTINGS: Final = "whence.fork.changed_settings"
"""Fork.changed_settings; absent if the settings are the parent's."""
DECODING_STRATEGY: Final = "whence.decoding.strategy"
"""The name of Decoding.strategy: "greedy", "sample", "beam_search" or "forced"."""
DECODING_SEED: Final = "whence.decoding.seed"
"""Sample.seed in decimal, as a string: all 64 bits of it."""
PROCESSOR_NAMES: Final = "whence.processors.names"
"""Processors in the order of application, to which the arrays of `whence.processors.*` on steps
refer: GenerationStarted.processor_names; absent where there are none."""
CONSTRAINT_LANGUAGE: Final = "whence.constraint.language"
"""Form of Decoding.constraint: "json_schema", "regex" or "grammar"; absent without a constraint."""
CONSTRAINT_ENGINE: Final = "whence.constraint.engine"
"""GenerationStarted.constraint_engine: library that computes the tokens that remain."""
CONSTRAINT_NUM_INCOMPLETE: Final = "whence.constraint.num_incomplete"
"""Number of sequences that ended before their text satisfied the constraint: those of
SequenceResult.constraint_complete that are false."""
SOURCE_METHOD: Final = "whence.source.method"
"""Method by which the shares of `whence.source.*` on steps were measured: source_method;
absent where none are recorded."""
UNAVAILABLE_PREFIX: Final = "whence.unavailable."
"""Followed by a part of the trace ("sources", "layers"), why the model cannot give it:
GenerationStarted.unavailable."""
LABEL_PREFIX: Final = "whence.label."
"""Followed by a label's key: GenerationStarted.labels, without `gen_ai.conversation.id`."""

GENERATION_UNLIKELY: Final = "whence.generation.unlikely"
"""True if a token of the generation was unlikely; absent otherwise, for searches by equality."""
GENERATION_NUM_UNLIKELY: Final = "whence.generation.num_unlikely"
"""Number of tokens below `--unlikely-below`, over all sequences: Step.logprob."""
GENERATION_LEAST_LIKELY_SEQUENCE: Final = "whence.generation.least_likely_sequence"
"""Step.sequence_index of the token with the lowest Step.logprob, of several the first; absent like
the next two if no step has a logprob."""
GENERATION_LEAST_LIKELY_INDEX: Final = "whence.generation.least_likely_index"
"""Step.index of that token."""
GENERATION_LEAST_LIKELY_PROBABILITY: Final = "whence.generation.least_likely_probability"
"""Its probability under the model, in the digits of a float32."""

# ---- on every span that stands for steps: the GenAI span, `decode`, `decode_block`, `decode_step`
# ---- and `beam_round`

STEP_SUMMARY: Final = "whence.step.summary"
"""One line for a person, made by `whence.summary` from the recorded messages. Content only as far
as it names tokens by their text, which is where spans may carry text."""

# ---- on the GenAI span's events: from Occurrence, the steps and SequenceResult ----

GENERATION_NUM_STEPS: Final = "whence.generation.num_steps"
"""Steps of all sequences recorded before; of rounds, for a running beam search:
Occurrence.num_steps."""
GENERATION_MAX_DURATION_NS: Final = "whence.generation.max_duration_ns"
"""MaxDurationPassed.max_duration."""
CANCEL_CAUSE: Final = "whence.cancel.cause"
"""GenerationCancelled.cause: "call" (of CancelGeneration), or "no_reader"."""
CANCEL_WITHOUT_READER_NS: Final = "whence.cancel.without_reader_ns"
"""Time for which no call had read the generation: GenerationCancelled.without_reader."""
READER_AFTER_OFFSET: Final = "whence.reader.after_offset"
"""Offset from which the call resumed: ReaderJoined.after_offset."""
READER_LAST_OFFSET: Final = "whence.reader.last_offset"
"""Last offset that was written to the connection: ReaderLeft.last_offset."""
READER_COUNT: Final = "whence.reader.count"
"""Calls that read the generation from now on: num_readers."""
ENGINE_END: Final = "whence.engine.end"
"""EngineEnded.detail."""
CALLER_TRACE_ID: Final = "whence.caller.trace_id"
"""Trace id of the call that caused the event: Caller.trace_id. A span event cannot have a link."""
CALLER_SPAN_ID: Final = "whence.caller.span_id"
"""Caller.span_id: the SERVER span of Generate and ResumeGeneration."""
CALLER_PARENT_SPAN_ID: Final = "whence.caller.parent_span_id"
"""The caller's own span: Caller.parent_span_id; absent if the caller sent no trace context."""
AUDIT_ACTION: Final = "whence.audit.action"
"""AuditRecord.action, in lower case."""
AUDIT_CALLER: Final = "whence.audit.caller"
"""AuditRecord.caller_id."""
AUDIT_NUM_CALLS: Final = "whence.audit.num_calls"
AUDIT_DETAIL: Final = "whence.audit.detail"
AUDIT_REASON: Final = "whence.audit.reason"
AUDIT_IS_SUMMARY: Final = "whence.audit.is_summary"
CLIENT_ADDRESS: Final = "client.address"
"""Caller.address: an IP address, or "unix"."""
CLIENT_PORT: Final = "client.port"
"""Caller.port; absent for a Unix socket."""
STOP_STRING: Final = "whence.stop.string"
"""Stop string of the request or the generation config: SequenceResult.stop. Absent if a token ended
the sequence; `whence.token.id` then says which one."""

# ---- on the `prefill` span: from GenerationFinished ----

PREFILL_NUM_TOKENS: Final = "whence.prefill.num_tokens"
"""GenerationFinished.num_prompt_tokens."""
PREFILL_NUM_CHUNKS: Final = "whence.prefill.num_chunks"
"""GenerationFinished.num_prefill_chunks; absent where it is."""
PREFILL_NUM_CACHED_TOKENS: Final = "whence.prefill.num_cached_tokens"
"""GenerationFinished.num_cached_prompt_tokens; absent where it is."""

# ---- on a `beam_round` span: from BeamRound ----

BEAM_ROUND_INDEX: Final = "whence.beam_round.index"
"""BeamRound.index."""
BEAM_ROUND_NUM_CONTINUATIONS: Final = "whence.beam_round.num_continuations"
"""Those that were considered."""
BEAM_ROUND_NUM_PARENTS: Final = "whence.beam_round.num_parents"
"""Beams of the round before that have at least one continuation that was kept or finished."""
BEAM_ROUND_NUM_KEPT: Final = "whence.beam_round.num_kept"
"""Those that go on into the next round."""
BEAM_ROUND_NUM_FINISHED: Final = "whence.beam_round.num_finished"
"""Those that their token ended."""
BEAM_ROUND_BEST_SCORE: Final = "whence.beam_round.best_score"
"""The highest running score of those that go on; absent where none does."""

# ---- on a `decode` span: from the sequence's first and last Step, and its SequenceResult ----

SEQUENCE_INDEX: Final = "whence.sequence.index"
"""Step.sequence_index; on steps too."""
SEQUENCE_LOGPROB: Final = "whence.sequence.logprob"
"""SequenceResult.logprob."""
SEQUENCE_SCORE: Final = "whence.sequence.score"
"""SequenceResult.score: for beam search only."""
DECODE_NUM_STEPS: Final = "whence.decode.num_steps"
"""Steps that were recorded of the sequence."""
DECODE_NUM_STEP_SPANS: Final = "whence.decode.num_step_spans"
"""Number of steps, from the first on, with a `decode_step` span each."""
DECODE_NUM_BLOCK_SPANS: Final = "whence.decode.num_block_spans"
"""Number of `decode_block` spans, for the other steps."""

DECODE_NUM_STEP_EVENTS: Final = "whence.decode.num_step_events"
"""Number of steps, from the first on, that are events; only where steps are events, as the next
four."""
DECODE_NUM_PARTS: Final = "whence.decode.num_parts"
"""Number of `decode` spans that hold them; on the first of the sequence."""
DECODE_PART: Final = "whence.decode.part"
"""Number of the span among these, from 0."""
DECODE_FIRST_INDEX: Final = "whence.decode.first_index"
"""Step.index of the first step that is an event of the span."""
DECODE_LAST_INDEX: Final = "whence.decode.last_index"
"""Step.index of the last step that is an event of the span."""

# ---- on the events of a step, in the form of the proposed token-level conventions ----

ITERATION_TOTAL_TOKENS: Final = "gen_ai.iteration.total_tokens"
"""Step.index + 1."""
ITERATION_BATCH_SIZE: Final = "gen_ai.iteration.batch_size"
"""StepTiming.batch_size."""
RESPONSE_TOKEN_IDS: Final = "gen_ai.response.candidate.token_ids"  # noqa: S105 - an attribute's name
"""Step.token_id, then Candidates.token_ids without it. The next three are parallel to it."""
RESPONSE_LOGPROBS: Final = "gen_ai.response.candidate.logprobs"
"""Step.logprob, then Candidates.logprobs: before any processor."""
RESPONSE_SAMPLING_LOGPROBS: Final = "whence.response.candidate.sampling_logprobs"
"""Step.sampling_logprob, then Candidates.sampling_logprobs: after all processors."""
RESPONSE_DECODED_TOKENS: Final = "gen_ai.response.candidate.decoded_tokens"
"""Content: the tokens' texts in the vocabulary."""

# ---- on a GenAI span that would have more than a megabyte ----

SHORTENED_ATTRIBUTES: Final = "whence.span.shortened_attributes"
"""Names of its attributes that end early."""

# ---- on the GenAI span, with `--token-arrays`: an element for each of the first tokens ----

PER_TOKEN_TIME_TO_SCHEDULE: Final = "gen_ai.response.per_token_time_to_schedule"  # noqa: S105 - an attribute's name
"""Seconds from the request's arrival to the start of the step."""
PER_TOKEN_TIME_TO_GENERATE: Final = "gen_ai.response.per_token_time_to_generate"  # noqa: S105 - an attribute's name
"""Seconds from the request's arrival to the token: StepTiming.elapsed_ns."""
PER_TOKEN_BATCH_SIZE: Final = "gen_ai.iteration.per_token_batch_size"  # noqa: S105 - an attribute's name
"""StepTiming.batch_size."""
PER_TOKEN_CUMULATIVE_COUNT: Final = "gen_ai.iteration.per_token_cumulative_count"  # noqa: S105 - an attribute's name
"""Step.index + 1."""
PER_POSITION_TOKEN_IDS: Final = "gen_ai.response.candidate.per_position_token_ids"  # noqa: S105 - an attribute's name
"""JSON, because attributes hold no arrays of arrays: as on the event of a step, as the next two."""
PER_POSITION_LOGPROBS: Final = "gen_ai.response.candidate.per_position_logprobs"
PER_POSITION_DECODED_TOKENS: Final = "gen_ai.response.candidate.per_position_decoded_tokens"
"""Content."""

# ---- on a `decode_step` span: from Step ----

STEP_INDEX: Final = "whence.step.index"
"""Step.index."""
STEP_ENTROPY: Final = "whence.step.entropy"
"""Entropy of the model's own distribution: Step.entropy."""
STEP_SAMPLING_ENTROPY: Final = "whence.step.sampling_entropy"
"""Entropy of the distribution drawn from: Step.sampling_entropy."""
STEP_BATCH_SIZE: Final = "whence.step.batch_size"
"""Sequences decoded together: StepTiming.batch_size."""
STEP_CONTEXT_LENGTH: Final = "whence.step.context_length"
"""Positions in the sequence's key-value cache: StepTiming.context_length."""
STEP_FORWARD_NS: Final = "whence.step.forward_ns"
"""StepTiming.forward_ns; of a sequence's first step, the prompt's last forward pass."""
STEP_SELECT_NS: Final = "whence.step.select_ns"
"""StepTiming.select_ns."""
TOKEN_ID: Final = "whence.token.id"  # noqa: S105 - an attribute's name
"""Step.token_id."""
TOKEN_LOGPROB: Final = "whence.token.logprob"  # noqa: S105 - an attribute's name
"""Under the model's own distribution: Step.logprob."""
TOKEN_SAMPLING_LOGPROB: Final = "whence.token.sampling_logprob"  # noqa: S105 - an attribute's name
"""Under the distribution drawn from: Step.sampling_logprob."""
TOKEN_UNLIKELY: Final = "whence.token.unlikely"  # noqa: S105 - an attribute's name
"""True if the token's probability under the model is below `--unlikely-below`; absent otherwise."""
TOKEN_RANK: Final = "whence.token.rank"  # noqa: S105 - an attribute's name
"""Number of tokens that the model held more likely: Step.rank."""
DRAW_NOISE: Final = "whence.draw.noise"
"""Draw.noise: for sampling only, as the next two."""
DRAW_RUNNER_UP_TOKEN_ID: Final = "whence.draw.runner_up_token_id"  # noqa: S105 - an attribute's name
"""Draw.runner_up_token_id."""
DRAW_MARGIN: Final = "whence.draw.margin"
"""Draw.margin."""
CANDIDATE_TOKEN_IDS: Final = "whence.candidates.token_ids"  # noqa: S105 - an attribute's name
"""Most likely first: Candidates.token_ids. With the next two, parallel arrays."""
CANDIDATE_LOGPROBS: Final = "whence.candidates.logprobs"
"""Candidates.logprobs."""
CANDIDATE_SAMPLING_LOGPROBS: Final = "whence.candidates.sampling_logprobs"
"""Candidates.sampling_logprobs; the lowest float32 stands for -inf, a token that a processor
removed: many backends cannot hold an infinity, and its exponential is zero all the same."""
PROCESSOR_NUM_KEPT: Final = "whence.processors.num_kept"
"""ProcessorEffects.num_kept. With the next two, parallel to `whence.processors.names`."""
PROCESSOR_REMOVED_MASS: Final = "whence.processors.removed_mass"
"""ProcessorEffects.removed_mass."""
PROCESSOR_TOKEN_LOGPROBS: Final = "whence.processors.token_logprobs"  # noqa: S105 - an attribute's name
"""ProcessorEffects.token_logprobs."""
SOURCE_POSITIONS: Final = "whence.source.positions"
"""Context positions that the token drew on directly, strongest first: Internals.source_positions.
The prompt's tokens come first, then the sequence's own, from 0."""
SOURCE_SHARES: Final = "whence.source.shares"
"""Parallel to the positions: Internals.source_shares. What they and the next two lack of 1 is
spread over positions that are not listed."""
SOURCE_SELF_SHARE: Final = "whence.source.self_share"
"""Share of the newest position, which predicted the token: Internals.self_share."""
SOURCE_SINK_SHARE: Final = "whence.source.sink_share"
"""Share of attention sinks, which are no sources: Internals.sink_share."""
LAYER_SHARES: Final = "whence.layer.shares"
"""After each layer, the chosen token's among the candidates and itself: Internals.layer_shares."""
LAYER_LEADER_TOKEN_IDS: Final = "whence.layer.leader_token_ids"  # noqa: S105 - an attribute's name
"""Parallel to the shares, the token that led among them: Internals.layer_leaders, as ids."""
TOKEN_TEXT: Final = "whence.token.text"  # noqa: S105 - an attribute's name
"""Content: Step.text, which is empty while a character is incomplete."""

# ---- on a `decode_block` span: from the Steps that it stands for ----

BLOCK_FIRST_INDEX: Final = "whence.block.first_index"
"""Step.index of the first."""
BLOCK_LAST_INDEX: Final = "whence.block.last_index"
"""Step.index of the last."""
BLOCK_NUM_STEPS: Final = "whence.block.num_steps"
"""Number of steps: all between the two, unless some are unreadable."""
BLOCK_TOKEN_IDS: Final = "whence.block.token_ids"  # noqa: S105 - an attribute's name
"""Step.token_id of each; absent where any has none."""
BLOCK_LOGPROB: Final = "whence.block.logprob"
"""The sum of Step.logprob."""
BLOCK_SAMPLING_LOGPROB: Final = "whence.block.sampling_logprob"
"""The sum of Step.sampling_logprob."""
BLOCK_MIN_LOGPROB: Final = "whence.block.min_logprob"
"""The lowest Step.logprob."""
BLOCK_MAX_RANK: Final = "whence.block.max_rank"
"""The highest Step.rank."""
BLOCK_MEAN_ENTROPY: Final = "whence.block.mean_entropy"
"""Over the steps that have an entropy: Step.entropy."""
BLOCK_MAX_ENTROPY: Final = "whence.block.max_entropy"
"""The highest Step.entropy."""
BLOCK_MAX_ENTROPY_INDEX: Final = "whence.block.max_entropy_index"
"""Step.index of the first step that has it."""
BLOCK_MIN_DRAW_MARGIN: Final = "whence.block.min_draw_margin"
"""The lowest Draw.margin."""
BLOCK_MIN_DRAW_MARGIN_INDEX: Final = "whence.block.min_draw_margin_index"
"""Step.index of the first step that has it."""
BLOCK_MEAN_BATCH_SIZE: Final = "whence.block.mean_batch_size"
"""Mean of StepTiming.batch_size."""
BLOCK_FORWARD_NS: Final = "whence.block.forward_ns"
"""The sum of StepTiming.forward_ns."""
BLOCK_SELECT_NS: Final = "whence.block.select_ns"
"""The sum of StepTiming.select_ns."""
