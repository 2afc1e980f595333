"""Fields common to all child spans of a generation."""

from collections.abc import Mapping

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence_server.telemetry.otlp.attributes import AttributeValue, key_values
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.origin import Origin


def child_span(
    origin: Origin,
    name: str,
    span_id: bytes,
    attributes: Mapping[str, AttributeValue | None],
    *,
    times: tuple[int, int],
    parent_span_id: bytes | None = None,
) -> Span:
    """Make a span below the GenAI span.

    Args:
        origin: the generation's.
        name: the span's, from `names`.
        span_id: its own.
        attributes: besides the generation's id; None stands for absent.
        times: its start and end, in Unix nanoseconds.
        parent_span_id: the GenAI span's where none is given.
    """
    start, end = times
    return Span(
        trace_id=origin.trace_id,
        span_id=span_id,
        trace_state=origin.trace_state,
        parent_span_id=parent_span_id or origin.ids.generation(),
        flags=origin.span_flags,
        name=name,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        attributes=key_values({names.GENERATION_ID: origin.generation_id, **attributes}),
    )
