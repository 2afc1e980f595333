"""Child spans of a generation: the fields that all of them share."""

from collections.abc import Mapping

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.origin import Origin


def make_child_span(
    origin: Origin,
    name: str,
    span_id: bytes,
    attributes: Mapping[str, AttributeValue | None],
    *,
    times: tuple[int, int],
    parent_span_id: bytes | None = None,
) -> Span:
    """Make a child span, by default of the GenAI span.

    Args:
        origin: the generation's place in its trace.
        name: the span's name, from `names`.
        span_id: the span's id.
        attributes: attributes besides the generation's id; those that are None are left out.
        times: start and end in Unix nanoseconds.
        parent_span_id: id of the parent; None is the GenAI span.
    """
    start, end = times
    return Span(
        trace_id=origin.trace_id,
        span_id=span_id,
        trace_state=origin.trace_state,
        parent_span_id=parent_span_id or origin.ids.get_generation_id(),
        flags=origin.span_flags,
        name=name,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        attributes=encode_attributes({names.GENERATION_ID: origin.generation_id, **attributes}),
    )
