"""GenAI span: one generation, with the attributes of the GenAI conventions."""

from collections.abc import Iterable, Mapping, Sequence

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from whence.summary import Likelihoods, shorten_float32
from whence.v1.generation_pb2 import FinishReason, GenerationFinished, GenerationStarted
from whence_server.domain.errors.quoting import may_quote_content
from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.bounds import SequenceBounds
from whence_server.telemetry.spans.constraints import (
    judge_constraint,
    make_constraint_attributes,
)
from whence_server.telemetry.spans.content import (
    keeps_text,
    make_input_messages,
    make_output_messages,
    make_tool_definitions,
)
from whence_server.telemetry.spans.content_bound import bound_content
from whence_server.telemetry.spans.finish_reasons import get_conventional_reason, get_reason_name
from whence_server.telemetry.spans.forks import make_fork_attributes, make_parent_links
from whence_server.telemetry.spans.ids import parse_hex_id
from whence_server.telemetry.spans.observation import make_observation_attributes
from whence_server.telemetry.spans.origin import HAS_IS_REMOTE, IS_REMOTE, Origin
from whence_server.telemetry.spans.parts import encode_with_attributes
from whence_server.telemetry.spans.phases import count_cached_tokens
from whence_server.telemetry.spans.pieces import serialise_attributes
from whence_server.telemetry.spans.span_events import select_events
from whence_server.telemetry.spans.token_arrays import NO_ARRAYS, TokenArrays

MAX_SPAN_BYTES = 1_000_000
"""Most bytes of the span: backends refuse larger ones, and a Collector messages of 4 MiB."""
_RESERVED_BYTES = 2_000
"""Bytes for the names of attributes that were cut, and for keys and lengths."""

DEFAULT_OPERATION = "text_completion"
MAX_INT64 = 2**63 - 1
OTHER_ERROR = "_OTHER"
"""The conventions' `error.type` for errors without a name."""


def make_generation_span(
    origin: Origin,
    started: GenerationStarted,
    finished: GenerationFinished,
    bounds: Mapping[int, SequenceBounds] = {},
    children: Iterable[Span] = (),
    *,
    events: Sequence[Span.Event] = (),
    content: bool = False,
    likelihoods: Likelihoods | None = None,
    summary: str | None = None,
    arrays: TokenArrays = NO_ARRAYS,
) -> bytes:
    """Serialise the GenAI span, from the request's arrival to the end of its last child or event.

    It has at most `MAX_SPAN_BYTES`: the content is cut to what the other attributes leave.

    Args:
        origin: the generation's place in its trace.
        started: the generation's start.
        finished: the generation's end.
        bounds: first and last step of each sequence.
        children: the span's direct children.
        events: the span's events in order of time; that of a failure is added.
        content: put the prompt and the outputs on the span.
        likelihoods: probabilities of all its steps; None leaves them out.
        summary: the summary of its steps; None leaves it out.
        arrays: attributes with an element for each token.

    Returns:
        A ScopeSpans message that holds the span alone.
    """
    end = max(
        finished.end_time.ToNanoseconds(),
        origin.start_time_ns,
        *(child.end_time_unix_nano for child in children),
        *(event.time_unix_nano for event in events),
    )
    attributes = make_generation_attributes(started, finished, bounds)
    attributes[names.STEP_SUMMARY] = summary
    if likelihoods is not None:
        attributes |= _make_likelihood_attributes(likelihoods)
    failed = _has_failed(finished)
    shown = select_events(events)
    message = _tell_failure(started, finished, content=content)
    span = Span(
        trace_id=origin.trace_id,
        span_id=origin.ids.get_generation_id(),
        trace_state=origin.trace_state,
        parent_span_id=origin.server_span_id,
        flags=origin.span_flags,
        name=f"{started.operation or DEFAULT_OPERATION} {started.model}",
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=origin.start_time_ns,
        end_time_unix_nano=end,
        attributes=encode_attributes(attributes),
        events=[*shown, _make_exception(finished, message, end)] if failed else shown,
        dropped_events_count=len(events) - len(shown),
        links=[*_make_training_links(started), *make_parent_links(started)],
        status=Status(code=Status.STATUS_CODE_ERROR, message=message) if failed else None,
    )
    return _encode_whole(span, started, finished, arrays, content=content)


def _encode_whole(
    span: Span,
    started: GenerationStarted,
    finished: GenerationFinished,
    arrays: TokenArrays,
    *,
    content: bool,
) -> bytes:
    """Serialise a span with arrays, content and the names of what was cut, as a ScopeSpans."""
    added = arrays.attributes
    shortened = list(arrays.shortened)
    if content and keeps_text(started):
        left = MAX_SPAN_BYTES - _RESERVED_BYTES - span.ByteSize() - len(added)
        messages, cut = _encode_content(started, finished, left)
        added = messages + added
        shortened = [*cut, *shortened]
    if shortened:
        added += serialise_attributes({names.SHORTENED_ATTRIBUTES: shortened})
    return encode_with_attributes(span, added)


def _encode_content(
    started: GenerationStarted, finished: GenerationFinished, max_bytes: int
) -> tuple[bytes, list[str]]:
    """Serialise the content as fields of a Span; return them, and the names of those cut."""
    inputs, outputs, tools = bound_content(
        make_input_messages(started),
        make_output_messages(finished),
        make_tool_definitions(started),
        max_bytes,
    )
    found = {
        names.GEN_AI_INPUT_MESSAGES: inputs,
        names.GEN_AI_OUTPUT_MESSAGES: outputs,
        names.GEN_AI_TOOL_DEFINITIONS: tools,
    }
    attributes = serialise_attributes({key: it.text for key, it in found.items()})
    return attributes, [key for key, it in found.items() if it.is_cut]


def make_generation_attributes(
    started: GenerationStarted,
    finished: GenerationFinished,
    bounds: Mapping[int, SequenceBounds],
) -> dict[str, AttributeValue | None]:
    """Return a generation's attributes without content; None marks an absent one."""
    return (
        _make_request_attributes(started)
        | _make_response_attributes(started, finished, bounds)
        | judge_constraint(started, finished)
        | _make_provenance_attributes(started)
        | make_fork_attributes(started)
        | make_observation_attributes(started, finished)
    )


def _has_failed(finished: GenerationFinished) -> bool:
    return finished.finish_reason == FinishReason.FINISH_REASON_FAILED


def _tell_failure(
    started: GenerationStarted, finished: GenerationFinished, *, content: bool
) -> str:
    """Return a failure's message; "" where it may quote content that spans may not carry."""
    reason, recorded = finished.failure.reason, started.HasField("recorded")
    if not content and may_quote_content(reason, recorded=recorded):
        return ""
    return finished.failure.message


def _make_exception(finished: GenerationFinished, message: str, time_ns: int) -> Span.Event:
    return Span.Event(
        time_unix_nano=time_ns,
        name=names.EXCEPTION,
        attributes=encode_attributes(
            {
                names.EXCEPTION_TYPE: finished.failure.reason or OTHER_ERROR,
                names.EXCEPTION_MESSAGE: message or None,
            }
        ),
    )


def _make_request_attributes(started: GenerationStarted) -> dict[str, AttributeValue | None]:
    decoding = started.effective_decoding
    attributes: dict[str, AttributeValue | None] = {
        names.GEN_AI_OPERATION_NAME: started.operation or DEFAULT_OPERATION,
        names.GEN_AI_PROVIDER_NAME: names.PROVIDER,
        names.GEN_AI_OUTPUT_TYPE: "json" if decoding.constraint.HasField("json_schema") else "text",
        names.GEN_AI_REQUEST_MODEL: started.model,
        names.GEN_AI_REQUEST_STREAM: True,
        names.GEN_AI_REQUEST_MAX_TOKENS: decoding.max_new_tokens or None,
    }
    if decoding.num_return_sequences > 1:
        attributes[names.GEN_AI_REQUEST_CHOICE_COUNT] = decoding.num_return_sequences
    if decoding.stop:
        attributes[names.GEN_AI_REQUEST_STOP_SEQUENCES] = list(decoding.stop)
    if decoding.HasField("sample"):
        sample = decoding.sample
        attributes |= {
            names.GEN_AI_REQUEST_TEMPERATURE: shorten_float32(sample.temperature),
            names.GEN_AI_REQUEST_TOP_K: float(sample.top_k),  # a double in the conventions
            names.GEN_AI_REQUEST_TOP_P: shorten_float32(sample.top_p),
            names.GEN_AI_REQUEST_SEED: sample.seed if sample.seed <= MAX_INT64 else None,
            names.DECODING_SEED: str(sample.seed),
        }
    return attributes


def _make_likelihood_attributes(likelihoods: Likelihoods) -> dict[str, AttributeValue | None]:
    least = likelihoods.least_likely
    return {
        names.GENERATION_UNLIKELY: True if likelihoods.num_unlikely else None,
        names.GENERATION_NUM_UNLIKELY: likelihoods.num_unlikely,
        names.GENERATION_LEAST_LIKELY_SEQUENCE: None if least is None else least.sequence_index,
        names.GENERATION_LEAST_LIKELY_INDEX: None if least is None else least.step_index,
        names.GENERATION_LEAST_LIKELY_PROBABILITY: likelihoods.least_probability,
    }


def _make_response_attributes(
    started: GenerationStarted,
    finished: GenerationFinished,
    bounds: Mapping[int, SequenceBounds],
) -> dict[str, AttributeValue | None]:
    reasons = [
        get_conventional_reason(result.finish_reason, has_calls=bool(result.tool_calls))
        for result in finished.sequences
    ]
    return {
        names.GEN_AI_RESPONSE_ID: started.generation_id,
        names.GEN_AI_RESPONSE_MODEL: started.model,
        names.GEN_AI_RESPONSE_FINISH_REASONS: reasons
        or [get_conventional_reason(finished.finish_reason)],
        names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: _find_time_to_first_chunk_s(started, bounds),
        names.GEN_AI_USAGE_INPUT_TOKENS: finished.num_prompt_tokens,
        names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: count_cached_tokens(finished),
        names.GEN_AI_USAGE_OUTPUT_TOKENS: finished.num_generated_tokens,
        names.ERROR_TYPE: (finished.failure.reason or OTHER_ERROR)
        if _has_failed(finished)
        else None,
        names.GENERATION_ID: started.generation_id,
        names.GENERATION_FINISH_REASON: get_reason_name(finished.finish_reason),
        names.GENERATION_QUEUE_NS: finished.queue_ns,
        names.GENERATION_PREFILL_NS: finished.prefill_ns,
        names.GENERATION_DECODE_NS: finished.decode_ns,
    }


def _make_provenance_attributes(started: GenerationStarted) -> dict[str, AttributeValue | None]:
    attributes: dict[str, AttributeValue | None] = {
        names.DECODING_STRATEGY: started.effective_decoding.WhichOneof("strategy"),
        names.PROCESSOR_NAMES: list(started.processor_names) or None,
        names.REQUEST_DIGEST: started.request_digest or None,
        names.MODEL_DIGEST: started.model_digest or None,
        names.TOKENIZER_DIGEST: started.tokenizer_digest or None,
        names.WEIGHTS_DIGEST: started.environment.weights_digest or None,
        names.SOURCE_METHOD: started.source_method or None,
    }
    return (
        attributes
        | _make_adapter_attributes(started)
        | make_constraint_attributes(started)
        | _make_training_attributes(started)
        | _add_prefix(names.UNAVAILABLE_PREFIX, started.unavailable)
        | _make_label_attributes(started)
    )


def _make_label_attributes(started: GenerationStarted) -> dict[str, AttributeValue | None]:
    """Return the labels as attributes; the conversation's id has a name in the conventions."""
    labels = dict(started.labels)
    conversation_id = labels.pop(names.GEN_AI_CONVERSATION_ID, None)
    return {
        names.GEN_AI_CONVERSATION_ID: conversation_id,
        **_add_prefix(names.LABEL_PREFIX, labels),
    }


def _add_prefix(prefix: str, mapping: Mapping[str, str]) -> dict[str, AttributeValue | None]:
    # Sorted, because the order of a protobuf map varies from one run to the next.
    return {prefix + key: mapping[key] for key in sorted(mapping)}


def _make_adapter_attributes(started: GenerationStarted) -> dict[str, AttributeValue | None]:
    adapter = started.adapter
    return {
        names.ADAPTER_NAME: adapter.name or None,
        names.ADAPTER_DIGEST: adapter.digest or None,
        names.ADAPTER_WEIGHTS_DIGEST: adapter.weights_digest or None,
    }


def _make_training_attributes(started: GenerationStarted) -> dict[str, AttributeValue | None]:
    if not started.HasField("training_run"):
        return {}
    run = started.training_run
    return {
        names.TRAINING_RUN_ID: run.training_run_id,
        names.TRAINING_TRACE_ID: run.trace_id or None,
        names.TRAINING_SPAN_ID: run.span_id or None,
        names.TRAINING_STEP: run.step if run.step <= MAX_INT64 else None,
    }


def _make_training_links(started: GenerationStarted) -> list[Span.Link]:
    """Make a link to the root span of the run that made the weights, if its ids are recorded."""
    run = started.training_run
    try:
        trace_id, span_id = parse_hex_id(run.trace_id, 16), parse_hex_id(run.span_id, 8)
    except ValueError:
        return []
    return [Span.Link(trace_id=trace_id, span_id=span_id, flags=HAS_IS_REMOTE | IS_REMOTE)]


def _find_time_to_first_chunk_s(
    started: GenerationStarted, bounds: Mapping[int, SequenceBounds]
) -> float | None:
    if started.effective_decoding.HasField("beam_search"):
        return None  # its steps are streamed at the end, not at their own times
    times_ns = [bound.first.timing.elapsed_ns for bound in bounds.values()]
    return min(times_ns) / 1e9 if times_ns else None
