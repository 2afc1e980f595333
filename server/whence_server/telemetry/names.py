"""Every name that whence's spans carry, with its meaning and the field that it is read from.

`gen_ai.*` follows the OpenTelemetry GenAI conventions, `rpc.*` and `server.*` the RPC ones.
`gen_ai.*` is on the GenAI span alone: backends take every span that has one for a model call.
Steps carry `whence.*`. Logprobs and entropies are in nats, times in nanoseconds. The text of
tokens is in none of them.
"""

from typing import Final

SCOPE: Final = "whence"
"""The instrumentation scope."""
PROVIDER: Final = "whence"
"""The value of `gen_ai.provider.name`."""

# ---- span names: constant, numbers go in attributes ----

DECODE: Final = "decode"
"""One for each returned sequence: from its first step to its last."""
DECODE_STEP: Final = "decode_step"
"""One token: the forward pass that predicted it, and its choice."""

# ---- on the SERVER span: from Call ----

RPC_SYSTEM_NAME: Final = "rpc.system.name"
"""Always "grpc"."""
RPC_METHOD: Final = "rpc.method"
"""Fully qualified, as in "whence.v1.GenerationService/Generate": Call.method."""
RPC_RESPONSE_STATUS_CODE: Final = "rpc.response.status_code"
"""The status code's name: Call.status_code."""
SERVER_ADDRESS: Final = "server.address"
"""An address, or the path of a Unix socket: Call.server_address."""
SERVER_PORT: Final = "server.port"
"""Absent for a Unix socket: Call.server_port."""
ERROR_TYPE: Final = "error.type"
"""Only with status ERROR: the status code's name, or on the GenAI span Failure.reason."""

# ---- on the GenAI span: from GenerationStarted and GenerationFinished ----

GEN_AI_OPERATION_NAME: Final = "gen_ai.operation.name"
"""GenerationStarted.operation: "text_completion" or "chat"."""
GEN_AI_PROVIDER_NAME: Final = "gen_ai.provider.name"
GEN_AI_OUTPUT_TYPE: Final = "gen_ai.output.type"
"""Always "text"."""
GEN_AI_REQUEST_MODEL: Final = "gen_ai.request.model"
"""GenerationStarted.model."""
GEN_AI_REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
"""Decoding.max_new_tokens."""
GEN_AI_REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
"""Decoding.num_return_sequences; absent where it is one, as the conventions have it."""
GEN_AI_REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
"""Decoding.stop; absent where there are none."""
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
GEN_AI_USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
"""GenerationFinished.num_prompt_tokens."""
GEN_AI_USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
"""GenerationFinished.num_generated_tokens."""

GENERATION_ID: Final = "whence.generation.id"
"""On every span of the generation."""
GENERATION_FINISH_REASON: Final = "whence.generation.finish_reason"
"""Of the generation as a whole, or of one sequence on its `decode` span: FinishReason."""
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
"""Environment.weights_digest: what really computed."""
DECODING_STRATEGY: Final = "whence.decoding.strategy"
"""The name of Decoding.strategy: "greedy", "sample", "beam_search" or "forced"."""
DECODING_SEED: Final = "whence.decoding.seed"
"""Sample.seed in decimal, as a string: all 64 bits of it."""
LABEL_PREFIX: Final = "whence.label."
"""Followed by a label's key: GenerationStarted.labels."""

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
"""How many of them, from the first on, have a `decode_step` span."""

# ---- on a `decode_step` span: from Step ----

STEP_INDEX: Final = "whence.step.index"
"""Step.index."""
STEP_ENTROPY: Final = "whence.step.entropy"
"""Of the model's own distribution: Step.entropy."""
STEP_SAMPLING_ENTROPY: Final = "whence.step.sampling_entropy"
"""Of the distribution drawn from: Step.sampling_entropy."""
STEP_BATCH_SIZE: Final = "whence.step.batch_size"
"""Sequences decoded together: StepTiming.batch_size."""
STEP_CONTEXT_LENGTH: Final = "whence.step.context_length"
"""Positions in the sequence's key-value cache: StepTiming.context_length."""
STEP_FORWARD_NS: Final = "whence.step.forward_ns"
"""StepTiming.forward_ns."""
STEP_SELECT_NS: Final = "whence.step.select_ns"
"""StepTiming.select_ns."""
TOKEN_ID: Final = "whence.token.id"  # noqa: S105 - an attribute's name
"""Step.token_id."""
TOKEN_LOGPROB: Final = "whence.token.logprob"  # noqa: S105 - an attribute's name
"""Under the model's own distribution: Step.logprob."""
TOKEN_SAMPLING_LOGPROB: Final = "whence.token.sampling_logprob"  # noqa: S105 - an attribute's name
"""Under the distribution drawn from: Step.sampling_logprob."""
TOKEN_RANK: Final = "whence.token.rank"  # noqa: S105 - an attribute's name
"""How many tokens the model held more likely: Step.rank."""
DRAW_NOISE: Final = "whence.draw.noise"
"""Draw.noise: for sampling only, as the next two."""
DRAW_RUNNER_UP_TOKEN_ID: Final = "whence.draw.runner_up_token_id"  # noqa: S105 - an attribute's name
"""Draw.runner_up_token_id."""
DRAW_MARGIN: Final = "whence.draw.margin"
"""Draw.margin."""
