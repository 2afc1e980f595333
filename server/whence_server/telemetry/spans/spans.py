"""SERVER span of a call, and `decode` span of a sequence.

The spans are pure functions of journalled messages, so that a span sent twice is byte-identical.
"""

from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from whence.summary import shorten_float32
from whence.v1.call_pb2 import Call
from whence.v1.generation_pb2 import SequenceResult
from whence_server.domain.telemetry import StepForm
from whence_server.domain.tracing import SAMPLED
from whence_server.telemetry.grpc_status import get_status_name, is_server_error
from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.blocks import count_blocks
from whence_server.telemetry.spans.bounds import SequenceBounds
from whence_server.telemetry.spans.children import make_child_span
from whence_server.telemetry.spans.finish_reasons import get_reason_name
from whence_server.telemetry.spans.ids import parse_hex_id
from whence_server.telemetry.spans.origin import HAS_IS_REMOTE, IS_REMOTE, W3C_FLAGS, Origin
from whence_server.telemetry.spans.parts import Parts
from whence_server.telemetry.spans.steps import (
    SIBLING_GAP_NS,
    compute_step_interval,
    count_step_spans,
)


def encode_span(span: Span) -> bytes:
    """Serialise a span as a ScopeSpans message that holds it alone."""
    return ScopeSpans(spans=[span]).SerializeToString()


def describe_span(piece: bytes) -> str:
    """Return a span's ids and name, from the ScopeSpans message that holds it alone."""
    span = ScopeSpans.FromString(piece).spans[0]
    return f"span {span.span_id.hex()} ({span.name}) of trace {span.trace_id.hex()}"


def make_server_span(call: Call) -> Span | None:
    """Make a call's SERVER span; None if the call is not sampled.

    Raises:
        ValueError: an id is not a W3C id.
    """
    if not call.trace_flags & SAMPLED:
        return None
    protocol, error_type = _describe_protocol(call)
    parent = parse_hex_id(call.parent_span_id, 8) if call.parent_span_id else b""
    start = call.start_time.ToNanoseconds()
    attributes: dict[str, AttributeValue | None] = {
        **protocol,
        names.SERVER_ADDRESS: call.server_address or None,
        names.SERVER_PORT: call.server_port if call.HasField("server_port") else None,
        names.ERROR_TYPE: error_type,
        names.GENERATION_ID: call.generation_id or None,
        names.ERROR_REASON: call.error.reason or None,
        names.ERROR_FIELD: call.error.field or None,
        names.ERROR_MESSAGE: call.error.message or None,
        names.EXCEPTION_TYPE: call.error.exception_type or None,
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
        attributes=encode_attributes(attributes),
        status=Status(code=Status.STATUS_CODE_ERROR) if error_type else None,
    )


def _describe_protocol(call: Call) -> tuple[dict[str, AttributeValue | None], str | None]:
    """Return the attributes of a call's protocol, and its error type if the server is at fault."""
    if call.HasField("http"):
        http = call.http
        attributes: dict[str, AttributeValue | None] = {
            names.HTTP_REQUEST_METHOD: http.method,
            names.HTTP_ROUTE: http.route,
            names.HTTP_RESPONSE_STATUS_CODE: http.status_code,
            names.URL_PATH: http.route,
            names.URL_SCHEME: "http",
        }
        return attributes, str(http.status_code) if http.status_code >= 500 else None
    status = get_status_name(call.status_code) or str(call.status_code)
    attributes = {
        names.RPC_SYSTEM_NAME: "grpc",
        names.RPC_METHOD: call.method,
        names.RPC_RESPONSE_STATUS_CODE: status,
    }
    return attributes, status if is_server_error(call.status_code) else None


def make_decode_span(
    origin: Origin,
    bounds: SequenceBounds,
    result: SequenceResult | None,
    *,
    step_spans: int | None,
    summary: str | None = None,
    parts: Parts | None = None,
    form: StepForm = StepForm.SPANS,
) -> Span:
    """Make a sequence's `decode` span, which covers all of its steps; its events are added later.

    Args:
        origin: the generation's place in its trace.
        bounds: the sequence's first and last step.
        result: the sequence's result, if it is known.
        step_spans: most steps of the generation that are spans or events; None is no bound.
        summary: the summary of its steps; None leaves it out.
        parts: parts of its events, if some steps are events.
        form: form of its steps.
    """
    first, last = bounds
    first_start, first_end = compute_step_interval(origin.start_time_ns, first.index, first.timing)
    last_end = compute_step_interval(origin.start_time_ns, last.index, last.timing)[1]
    num_steps = last.index + 1
    num_own = min(num_steps, count_step_spans(origin, first.sequence_index, step_spans))
    attributes: dict[str, AttributeValue | None] = {
        names.STEP_SUMMARY: summary,
        names.SEQUENCE_INDEX: first.sequence_index,
        names.DECODE_NUM_STEPS: num_steps,
        names.DECODE_NUM_STEP_SPANS: num_own if form.has_spans else 0,
        names.DECODE_NUM_BLOCK_SPANS: count_blocks(num_steps - num_own),
    }
    if form.has_events:
        attributes |= _make_part_attributes(num_own, parts)
    if result is not None:
        attributes |= {
            names.GENERATION_FINISH_REASON: get_reason_name(result.finish_reason),
            names.SEQUENCE_LOGPROB: shorten_float32(result.logprob)
            if result.HasField("logprob")
            else None,
            names.SEQUENCE_SCORE: shorten_float32(result.score)
            if result.HasField("score")
            else None,
        }
    return make_child_span(
        origin,
        names.DECODE,
        origin.ids.get_decode_id(first.sequence_index),
        attributes,
        times=(
            max(first_start - SIBLING_GAP_NS, origin.start_time_ns),
            max(first_end, last_end),
        ),
    )


def _make_part_attributes(num_events: int, parts: Parts | None) -> dict[str, AttributeValue | None]:
    attributes: dict[str, AttributeValue | None] = {names.DECODE_NUM_STEP_EVENTS: num_events}
    if parts is not None:
        attributes |= {
            names.DECODE_NUM_PARTS: parts.num_parts,
            names.DECODE_PART: parts.first.number,
            names.DECODE_FIRST_INDEX: parts.first.first_index,
            names.DECODE_LAST_INDEX: parts.first.last_index,
        }
    return attributes
