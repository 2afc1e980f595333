"""Conversion of what a recorder says of its models and batches, with checks of all of it."""

import hashlib
import re
import time

from opentelemetry.sdk.trace.sampling import Sampler

from whence.v1 import generation_pb2, record_pb2
from whence_server.domain.decoding import (
    DECODING_OPTIONS,
    TRACE_OPTIONS,
    Configured,
    Decoding,
    GenerationDefaults,
    Strategy,
    TraceOptions,
)
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.domain.model import Environment, ModelInfo, TextFiles
from whence_server.domain.recorded import (
    MAX_ROWS,
    MAX_TOKENIZER_BYTES,
    BatchStart,
    RecordedModel,
    RecordedPrompt,
)
from whence_server.rpc.conversions import read_labels, read_options, require_generation_id
from whence_server.telemetry.context import read_trace_context

MAX_NAME_CHARACTERS = 256
_MAX_VOCABULARY = 1 << 24
_MAX_PROCESSORS = 64
_AHEAD_NS = 86_400 * 1_000_000_000
_SHA256 = re.compile("[0-9a-f]{64}")


def convert_model(message: record_pb2.RecordedModel) -> RecordedModel:
    """Convert the description of a model.

    Raises:
        InvalidRequestError: fields break rules.
    """
    violations: list[FieldViolation] = []

    def require(field: str, rule: str, *, holds: bool) -> None:
        if not holds:
            violations.append(FieldViolation(f"model.{field}", f"must be {rule}"))

    given = message.environment
    require("model_number", "1 or more", holds=message.model_number > 0)
    require(
        "name",
        f"a text of at most {MAX_NAME_CHARACTERS} characters",
        holds=0 < len(message.name) <= MAX_NAME_CHARACTERS,
    )
    require(
        "vocabulary_size",
        f"from 1 to {_MAX_VOCABULARY}",
        holds=0 < message.vocabulary_size <= _MAX_VOCABULARY,
    )
    require(
        "tokenizer_sha256",
        "64 hex digits in lower case",
        holds=_SHA256.fullmatch(message.tokenizer_sha256) is not None,
    )
    require(
        "tokenizer_bytes",
        f"from 1 to {MAX_TOKENIZER_BYTES}",
        holds=0 < message.tokenizer_bytes <= MAX_TOKENIZER_BYTES,
    )
    require(
        "environment.weights_digest",
        "64 hex digits in lower case, or empty",
        holds=not given.weights_digest or _SHA256.fullmatch(given.weights_digest) is not None,
    )
    texts = [
        *(message.architecture, given.whence_version, given.torch_version, given.dtype),
        *(given.transformers_version, given.device, given.attention_implementation),
    ]
    require(
        "environment",
        f"of texts with at most {MAX_NAME_CHARACTERS} characters each",
        holds=max(map(len, texts)) <= MAX_NAME_CHARACTERS,
    )
    if violations:
        raise InvalidRequestError(*violations)
    return RecordedModel(
        message.model_number,
        _make_info(message),
        message.tokenizer_sha256,
        message.tokenizer_bytes,
    )


def _make_info(message: record_pb2.RecordedModel) -> ModelInfo:
    given = message.environment
    return ModelInfo(
        name=message.name,
        architecture=message.architecture,
        num_parameters=message.num_parameters,
        num_layers=message.num_layers,
        vocabulary_size=message.vocabulary_size,
        max_context_length=message.max_context_length,
        model_digest="",
        tokenizer_digest=message.tokenizer_sha256,
        weights_digest=given.weights_digest,
        files=(),
        loaded_files=(),
        batched=True,
        environment=Environment(
            whence_version=given.whence_version,
            torch_version=given.torch_version,
            transformers_version=given.transformers_version,
            dtype=given.dtype,
            device=given.device,
            num_threads=given.num_threads,
            attention_implementation=given.attention_implementation,
        ),
        defaults=GenerationDefaults(),
        text=TextFiles("", None, {}, cleans_up_spaces=message.cleans_up_spaces),
    )


def convert_start(
    message: record_pb2.BatchBegun, limits: Limits, sampler: Sampler, method: str
) -> BatchStart:
    """Convert the start of a batch.

    Args:
        message: the start.
        limits: bounds on labels and candidates.
        sampler: decides if the spans of each generation are exported.
        method: fully qualified name of the method, the name of the generations' SERVER spans.

    Raises:
        InvalidRequestError: fields break rules.
    """
    if len(message.labels) > limits.max_labels:
        raise InvalidRequestError(
            FieldViolation("begun.labels", f"may have at most {limits.max_labels} entries")
        )
    violations: list[FieldViolation] = []
    decoding = _convert_decoding(message, violations)
    given = {k: v for k, v in read_options(TRACE_OPTIONS, message, violations).items() if v}
    trace = TraceOptions(**({"content": limits.content} | given))
    if above := trace.content.find_fault(limits.content):
        violations.append(FieldViolation("begun.trace.content", above))
    if trace.num_candidates > limits.max_candidates:
        violations.append(
            FieldViolation("begun.trace.num_candidates", f"is above {limits.max_candidates}")
        )
    num_rows = len(message.prompts) * max(decoding.num_return_sequences, decoding.num_beams)
    if not 0 < num_rows <= MAX_ROWS:
        violations.append(
            FieldViolation("begun.prompts", f"must make from 1 to {MAX_ROWS} rows, not {num_rows}")
        )
    names = tuple(message.processor_names)
    if len(names) > _MAX_PROCESSORS or max(map(len, names), default=0) > MAX_NAME_CHARACTERS:
        violations.append(
            FieldViolation(
                "begun.processor_names",
                f"may have at most {_MAX_PROCESSORS} names of {MAX_NAME_CHARACTERS} characters",
            )
        )
    labels = read_labels(message.labels, limits, violations)
    start_time_ns = _read_start_ns(message, violations)
    if violations:
        raise InvalidRequestError(*violations)
    carrier = (("traceparent", message.traceparent), ("tracestate", message.tracestate))
    told = [(key, value) for key, value in carrier if value]
    return BatchStart(
        number=message.batch_number,
        model_number=message.model_number,
        start_time_ns=start_time_ns,
        trace_contexts=[read_trace_context(told, method, sampler) for _ in message.prompts],
        decoding=decoding,
        trace=trace,
        processor_names=names,
        prompts=[_convert_prompt(prompt) for prompt in message.prompts],
        request_digest=hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest(),
        labels=labels,
    )


def _read_start_ns(message: record_pb2.BatchBegun, violations: list[FieldViolation]) -> int:
    """Return the start of a batch in Unix nanoseconds; note one that no sound clock shows.

    Retention counts ages from it, and the journal's column holds 64 bits.
    """
    try:
        start_ns = int(message.start_time.ToNanoseconds())
    except ValueError:
        start_ns = 0
    if not 0 < start_ns <= time.time_ns() + _AHEAD_NS:
        violations.append(
            FieldViolation(
                "begun.start_time",
                "must be the time of the call: after 1970, and at most a day ahead of the "
                "server's clock",
            )
        )
    return start_ns


def _convert_prompt(prompt: record_pb2.BatchPrompt) -> RecordedPrompt:
    if not prompt.token_ids:
        raise InvalidRequestError(
            FieldViolation("begun.prompts.token_ids", "must hold at least one token id")
        )
    return RecordedPrompt(require_generation_id(prompt.generation_id), tuple(prompt.token_ids))


def _convert_decoding(message: record_pb2.BatchBegun, violations: list[FieldViolation]) -> Decoding:
    chosen = message.decoding.WhichOneof("strategy")
    if chosen not in {"greedy", "sample", "beam_search"}:
        raise InvalidRequestError(
            FieldViolation("begun.decoding.strategy", "must be greedy, sample or beam_search")
        )
    if message.decoding.HasField("constraint") or message.decoding.bad_words:
        raise InvalidRequestError(
            FieldViolation(
                "begun.decoding",
                "has no constraint and no bad_words as texts; use configured_decoding.bad_words",
            )
        )
    values = read_options(DECODING_OPTIONS, message, violations)
    given = {name: value for name, value in values.items() if value is not None}
    configured = message.configured_decoding
    return Decoding(
        strategy=Strategy(chosen),
        **{"max_new_tokens": 0} | given,
        eos_token_ids=tuple(message.eos_token_ids),
        bad_word_ids=tuple(tuple(word.token_ids) for word in configured.bad_words),
        configured=_convert_configured(configured),
    )


def _convert_configured(message: generation_pb2.ConfiguredDecoding) -> Configured:
    return Configured(
        sequence_biases=tuple((tuple(b.token_ids), b.bias) for b in message.sequence_biases),
        suppress_token_ids=tuple(message.suppress_token_ids),
        begin_suppress_token_ids=tuple(message.begin_suppress_token_ids),
        begin_suppress_index=message.begin_suppress_index,
        forced_bos_token_id=message.forced_bos_token_id
        if message.HasField("forced_bos_token_id")
        else None,
        forced_eos_token_ids=tuple(message.forced_eos_token_ids),
        top_h=message.top_h,
        renormalize_logits=message.renormalize_logits,
    )
