"""The spans above the steps: a call's SERVER span, the GenAI span, a sequence's `decode` span.

Pure functions of journalled messages. What is sent twice is the same to the byte.
"""

from collections.abc import Iterable

import grpc
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from whence.v1.call_pb2 import Call
from whence.v1.generation_pb2 import (
    FinishReason,
    GenerationFinished,
    GenerationStarted,
    SequenceResult,
)
from whence_server.domain.tracing import SAMPLED
from whence_server.telemetry import names
from whence_server.telemetry.attributes import AttributeValue, key_values
from whence_server.telemetry.bounds import SequenceBounds
from whence_server.telemetry.ids import parse_hex_id
from whence_server.telemetry.origin import HAS_IS_REMOTE, IS_REMOTE, W3C_FLAGS, Origin
from whence_server.telemetry.steps import SIBLING_GAP_NS, num_step_spans, step_interval

DEFAULT_OPERATION = "text_completion"
MAX_INT64 = 2**63 - 1

_STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
_SERVER_ERRORS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""The conventions' list: any other status is the caller's doing, and the server did well."""
_FINISH_REASONS = {
    FinishReason.FINISH_REASON_END_OF_SEQUENCE: "stop",
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
    FinishReason.FINISH_REASON_FAILED: "error",
}
"""In the GenAI conventions' words, where they have one."""


def encode(span: Span) -> bytes:
    """Serialises a span as a ScopeSpans message that holds it alone."""
    return ScopeSpans(spans=[span]).SerializeToString()


def server_span(call: Call) -> Span | None:
    """Makes a call's SERVER span, or None where none is wanted.

    Raises:
        ValueError: an id is not one.
    """
    if not call.trace_flags & SAMPLED:
        return None
    status = _STATUS_NAMES.get(call.status_code, str(call.status_code))
    failed = status in _SERVER_ERRORS
    parent = parse_hex_id(call.parent_span_id, 8) if call.parent_span_id else b""
    start = call.start_time.ToNanoseconds()
    attributes: dict[str, AttributeValue | None] = {
        names.RPC_SYSTEM_NAME: "grpc",
        names.RPC_METHOD: call.method,
        names.RPC_RESPONSE_STATUS_CODE: status,
        names.SERVER_ADDRESS: call.server_address or None,
        names.SERVER_PORT: call.server_port if call.HasField("server_port") else None,
        names.ERROR_TYPE: status if failed else None,
        names.GENERATION_ID: call.generation_id or None,
    }
    return Span(
        trace_id=parse_hex_id(call.trace_id, 16),
        span_id=parse_hex_id(call.span_id, 8),
        trace_state=call.trace_state,
        parent_span_id=parent,
        flags=(call.trace_flags & W3C_FLAGS) | HAS_IS_REMOTE | (IS_REMOTE if parent else 0),
        name=call.method,
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=start,
        end_time_unix_nano=max(call.end_time.ToNanoseconds(), start),
        attributes=key_values(attributes),
        status=Status(code=Status.STATUS_CODE_ERROR) if failed else None,
    )


def generation_span(
    origin: Origin,
    started: GenerationStarted,
    finished: GenerationFinished,
    decodes: Iterable[Span] = (),
) -> Span:
    """Makes the GenAI span: from the request's arrival to the end of all that it holds."""
    end = max(
        finished.end_time.ToNanoseconds(),
        origin.start_time_ns,
        *(decode.end_time_unix_nano for decode in decodes),
    )
    status = None
    if finished.finish_reason == FinishReason.FINISH_REASON_FAILED:
        status = Status(code=Status.STATUS_CODE_ERROR, message=finished.failure.message)
    return Span(
        trace_id=origin.trace_id,
        span_id=origin.ids.generation(),
        trace_state=origin.trace_state,
        parent_span_id=origin.server_span_id,
        flags=origin.span_flags,
        name=f"{started.operation or DEFAULT_OPERATION} {started.model}",
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=origin.start_time_ns,
        end_time_unix_nano=end,
        attributes=key_values(
            _request_attributes(started)
            | _response_attributes(started, finished)
            | _provenance_attributes(started)
        ),
        status=status,
    )


def decode_span(
    origin: Origin,
    bounds: SequenceBounds,
    result: SequenceResult | None,
    step_spans: int | None,
) -> Span:
    """Makes a sequence's `decode` span, around all of its steps.

    Args:
        origin: the generation's.
        bounds: the sequence's first and last step.
        result: how the sequence ended, where that is known.
        step_spans: at most so many `decode_step` spans for the generation; None is no bound.
    """
    first, last = bounds
    first_start, first_end = step_interval(origin.start_time_ns, first.timing)
    last_end = step_interval(origin.start_time_ns, last.timing)[1]
    num_steps = last.index + 1
    attributes: dict[str, AttributeValue | None] = {
        names.GENERATION_ID: origin.generation_id,
        names.SEQUENCE_INDEX: first.sequence_index,
        names.DECODE_NUM_STEPS: num_steps,
        names.DECODE_NUM_STEP_SPANS: min(
            num_steps, num_step_spans(origin, first.sequence_index, step_spans)
        ),
    }
    if result is not None:
        attributes |= {
            names.GENERATION_FINISH_REASON: _reason_name(result.finish_reason),
            names.SEQUENCE_LOGPROB: result.logprob if result.HasField("logprob") else None,
            names.SEQUENCE_SCORE: result.score if result.HasField("score") else None,
        }
    return Span(
        trace_id=origin.trace_id,
        span_id=origin.ids.decode(first.sequence_index),
        trace_state=origin.trace_state,
        parent_span_id=origin.ids.generation(),
        flags=origin.span_flags,
        name=names.DECODE,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=max(first_start - SIBLING_GAP_NS, origin.start_time_ns),
        end_time_unix_nano=max(first_end, last_end),
        attributes=key_values(attributes),
    )


def _request_attributes(started: GenerationStarted) -> dict[str, AttributeValue | None]:
    decoding = started.effective_decoding
    attributes: dict[str, AttributeValue | None] = {
        names.GEN_AI_OPERATION_NAME: started.operation or DEFAULT_OPERATION,
        names.GEN_AI_PROVIDER_NAME: names.PROVIDER,
        names.GEN_AI_OUTPUT_TYPE: "text",
        names.GEN_AI_REQUEST_MODEL: started.model,
        names.GEN_AI_REQUEST_MAX_TOKENS: decoding.max_new_tokens or None,
    }
    if decoding.num_return_sequences > 1:
        attributes[names.GEN_AI_REQUEST_CHOICE_COUNT] = decoding.num_return_sequences
    if decoding.stop:
        attributes[names.GEN_AI_REQUEST_STOP_SEQUENCES] = list(decoding.stop)
    if decoding.HasField("sample"):
        sample = decoding.sample
        attributes |= {
            names.GEN_AI_REQUEST_TEMPERATURE: sample.temperature,
            names.GEN_AI_REQUEST_TOP_K: sample.top_k,
            names.GEN_AI_REQUEST_TOP_P: sample.top_p,
            names.GEN_AI_REQUEST_SEED: sample.seed if sample.seed <= MAX_INT64 else None,
            names.DECODING_SEED: str(sample.seed),
        }
    return attributes


def _response_attributes(
    started: GenerationStarted, finished: GenerationFinished
) -> dict[str, AttributeValue | None]:
    failed = finished.finish_reason == FinishReason.FINISH_REASON_FAILED
    reasons = [result.finish_reason for result in finished.sequences] or [finished.finish_reason]
    return {
        names.GEN_AI_RESPONSE_ID: started.generation_id,
        names.GEN_AI_RESPONSE_MODEL: started.model,
        names.GEN_AI_RESPONSE_FINISH_REASONS: [
            _FINISH_REASONS.get(reason, _reason_name(reason)) for reason in reasons
        ],
        names.GEN_AI_USAGE_INPUT_TOKENS: finished.num_prompt_tokens,
        names.GEN_AI_USAGE_OUTPUT_TOKENS: finished.num_generated_tokens,
        names.ERROR_TYPE: (finished.failure.reason or "_OTHER") if failed else None,
        names.GENERATION_ID: started.generation_id,
        names.GENERATION_FINISH_REASON: _reason_name(finished.finish_reason),
        names.GENERATION_QUEUE_NS: finished.queue_ns,
        names.GENERATION_PREFILL_NS: finished.prefill_ns,
        names.GENERATION_DECODE_NS: finished.decode_ns,
    }


def _provenance_attributes(started: GenerationStarted) -> dict[str, AttributeValue | None]:
    attributes: dict[str, AttributeValue | None] = {
        names.DECODING_STRATEGY: started.effective_decoding.WhichOneof("strategy"),
        names.REQUEST_DIGEST: started.request_digest or None,
        names.MODEL_DIGEST: started.model_digest or None,
        names.TOKENIZER_DIGEST: started.tokenizer_digest or None,
        names.WEIGHTS_DIGEST: started.environment.weights_digest or None,
    }
    # A map's order is not the same from one run to the next; its keys' order is.
    labels = {names.LABEL_PREFIX + key: started.labels[key] for key in sorted(started.labels)}
    return attributes | labels


def _reason_name(reason: FinishReason.ValueType) -> str:
    if reason not in FinishReason.values():
        return str(reason)  # a reason that a newer server wrote
    return FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
