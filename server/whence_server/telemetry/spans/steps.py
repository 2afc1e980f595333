"""`decode_step` spans, one for each step: the hot path, some microseconds for a span."""

import struct
from typing import NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from whence.v1.step_pb2 import Step, StepTiming
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.otlp.wire import FIXED64, Heads, make_tag
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.ids import SpanIds
from whence_server.telemetry.spans.internals import encode_internals
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.pieces import serialise_attributes
from whence_server.telemetry.spans.step_attributes import StepAttributes

SIBLING_GAP_NS = 1_000
"""Gap between siblings in nanoseconds: Jaeger does not show siblings that touch."""

_MAX_FRAMES = 4_096
# A span begins with the trace id (16 bytes) and the span id (8), each after a tag and a length.
_ID_BEGIN, _ID_END = 20, 28
_START_TAG = make_tag(Span.START_TIME_UNIX_NANO_FIELD_NUMBER, FIXED64)
_END_TAG = make_tag(Span.END_TIME_UNIX_NANO_FIELD_NUMBER, FIXED64)
_TIMES = struct.Struct("<BQBQ").pack
_SPAN_HEADS = Heads(ScopeSpans.SPANS_FIELD_NUMBER)


def compute_step_interval(start_time_ns: int, index: int, timing: StepTiming) -> tuple[int, int]:
    """Return the start and end of a step's span, at least 1 us apart, in Unix nanoseconds.

    The span begins 1 us late, so that it does not touch the span of the step before, and never
    before the request's arrival. A first token comes of the prompt's forward pass, which belongs
    to `prefill`.

    Args:
        start_time_ns: the request's arrival in Unix nanoseconds.
        index: the step's index in its sequence.
        timing: the step's timing.
    """
    end = start_time_ns + timing.elapsed_ns
    lasted_ns = timing.select_ns if index == 0 else timing.forward_ns + timing.select_ns
    start = max(end - max(lasted_ns, 2 * SIBLING_GAP_NS) + SIBLING_GAP_NS, start_time_ns)
    return start, max(end, start + SIBLING_GAP_NS)


def count_step_spans(origin: Origin, sequence_index: int, step_spans: int | None) -> int:
    """Return the number of a sequence's first steps that have a span of their own.

    The bound is divided evenly among the generation's sequences, so that it does not depend on
    earlier spans whether a step has a span.

    Args:
        origin: the generation's place in its trace.
        sequence_index: index of the sequence.
        step_spans: most `decode_step` spans of the generation; None is no bound.
    """
    if step_spans is None:
        return 2**32
    share, rest = divmod(step_spans, origin.num_sequences)
    return share + (sequence_index < rest)


class StepSpans:
    """Encoder of steps as spans, from cached templates.

    Building a span with its attributes takes protobuf 30 us. Therefore constant parts are
    serialised once: the fields around ids and times for each sequence, the attributes for each
    set of present fields. The bytes equal those of a serialised opentelemetry-proto message.

    Args:
        candidates: put the step's candidates on its span.
        text: put the token's text on its span.
    """

    def __init__(self, *, candidates: bool = True, text: bool = False) -> None:
        self._attributes = StepAttributes(candidates=candidates, text=text)
        self._frames: dict[tuple[SpanIds, int], _Frame] = {}

    def encode(self, origin: Origin, step: Step) -> bytes:
        """Serialise the step's span as a ScopeSpans message that holds it alone.

        Raises:
            ValueError: its times are negative or exceed 64 bits.
        """
        ids, sequence_index, index = origin.ids, step.sequence_index, step.index
        frame = self._frames.get((ids, sequence_index)) or self._add_frame(origin, sequence_index)
        start, end = compute_step_interval(origin.start_time_ns, index, step.timing)
        if not 0 <= start < end < 1 << 64:
            raise ValueError(f"a span cannot last from {start} to {end} ns: times have 64 bits")
        span = b"".join(
            (
                frame.before_id,
                ids.get_decode_step_id(sequence_index, index),
                frame.after_id,
                _TIMES(_START_TAG, start, _END_TAG, end),
                frame.attributes,
                self._attributes.encode(step),
                encode_internals(step) if step.HasField("internals") else b"",
                frame.flags,
            )
        )
        return _SPAN_HEADS[len(span)] + span

    def _add_frame(self, origin: Origin, sequence_index: int) -> "_Frame":
        if len(self._frames) >= _MAX_FRAMES:
            self._frames.clear()
        frame = self._frames[origin.ids, sequence_index] = _make_frame(origin, sequence_index)
        return frame


class _Frame(NamedTuple):
    """Serialised fields that the spans of one sequence's steps share."""

    before_id: bytes
    after_id: bytes
    attributes: bytes
    flags: bytes


def _make_frame(origin: Origin, sequence_index: int) -> _Frame:
    fields = Span(
        trace_id=origin.trace_id,
        span_id=bytes(8),
        trace_state=origin.trace_state,
        parent_span_id=origin.ids.get_decode_id(sequence_index),
        name=names.DECODE_STEP,
        kind=Span.SPAN_KIND_INTERNAL,
    ).SerializeToString()
    own: dict[str, AttributeValue] = {
        names.GENERATION_ID: origin.generation_id,
        names.SEQUENCE_INDEX: sequence_index,
    }
    return _Frame(
        fields[:_ID_BEGIN],
        fields[_ID_END:],
        serialise_attributes(own),
        Span(flags=origin.span_flags).SerializeToString(),
    )
