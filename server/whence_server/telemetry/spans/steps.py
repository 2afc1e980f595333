"""One `decode_step` span for each step: the hot path, some microseconds a span."""

import struct
from typing import NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from whence.v1.step_pb2 import Step, StepTiming
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.otlp.wire import FIXED64, Heads, tag
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.ids import SpanIds
from whence_server.telemetry.spans.internals import internals_attributes
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.pieces import attributes_bytes
from whence_server.telemetry.spans.step_attributes import StepAttributes

SIBLING_GAP_NS = 1_000
"""Spans that follow one another never touch: Jaeger leaves out siblings that do."""

_MAX_FRAMES = 4_096
# A span begins with its trace's id, 16 bytes, and its own, 8, each after a tag and a length.
_ID_BEGIN, _ID_END = 20, 28
_START_TAG = tag(Span.START_TIME_UNIX_NANO_FIELD_NUMBER, FIXED64)
_END_TAG = tag(Span.END_TIME_UNIX_NANO_FIELD_NUMBER, FIXED64)
_TIMES = struct.Struct("<BQBQ").pack
_SPAN_HEADS = Heads(ScopeSpans.SPANS_FIELD_NUMBER)


def step_interval(start_time_ns: int, index: int, timing: StepTiming) -> tuple[int, int]:
    """Return a step's Unix times: at least 1 us long, never before its request's arrival.

    It leaves the first microsecond of its time free, so that it does not touch the step
    before. The forward pass behind a first token is the prompt's: `prefill` has it.

    Args:
        start_time_ns: the request's arrival.
        index: the step's.
        timing: the step's.
    """
    end = start_time_ns + timing.elapsed_ns
    lasted_ns = timing.select_ns if index == 0 else timing.forward_ns + timing.select_ns
    start = max(end - max(lasted_ns, 2 * SIBLING_GAP_NS) + SIBLING_GAP_NS, start_time_ns)
    return start, max(end, start + SIBLING_GAP_NS)


def num_step_spans(origin: Origin, sequence_index: int, step_spans: int | None) -> int:
    """Say how many of a sequence's steps, from the first on, have a span of their own.

    The generation's allowance is shared out evenly, so that a step alone decides whether it
    has a span, whatever was sent before it.

    Args:
        origin: the generation's.
        sequence_index: which of its sequences.
        step_spans: at most so many for the whole generation; None is no bound.
    """
    if step_spans is None:
        return 2**32
    share, rest = divmod(step_spans, origin.num_sequences)
    return share + (sequence_index < rest)


class StepSpans:
    """Encodes steps.

    Building a span with its attributes from nothing costs protobuf 30 us. So what is the same
    in all spans is made once: for each sequence the fields around the ids and times, for each
    set of fields that steps come with the attributes. The bytes are those that
    opentelemetry-proto's own message serialises to.

    Args:
        candidates: whether spans carry the step's candidates.
        text: whether they carry the token's text.
    """

    def __init__(self, *, candidates: bool = True, text: bool = False) -> None:
        self._attributes = StepAttributes(candidates=candidates, text=text)
        self._frames: dict[tuple[SpanIds, int], _Frame] = {}

    def encode(self, origin: Origin, step: Step) -> bytes:
        """Serialise the step's span as a ScopeSpans message that holds it alone.

        Raises:
            ValueError: its times are none that a span can have.
        """
        ids, sequence_index, index = origin.ids, step.sequence_index, step.index
        frame = self._frames.get((ids, sequence_index)) or self._new_frame(origin, sequence_index)
        start, end = step_interval(origin.start_time_ns, index, step.timing)
        if not 0 <= start < end < 1 << 64:
            raise ValueError(f"a span cannot last from {start} to {end} ns")
        span = b"".join(
            (
                frame.before_id,
                ids.decode_step(sequence_index, index),
                frame.after_id,
                _TIMES(_START_TAG, start, _END_TAG, end),
                frame.attributes,
                self._attributes.encode(step),
                internals_attributes(step) if step.HasField("internals") else b"",
                frame.flags,
            )
        )
        return _SPAN_HEADS[len(span)] + span

    def _new_frame(self, origin: Origin, sequence_index: int) -> "_Frame":
        if len(self._frames) >= _MAX_FRAMES:
            self._frames.clear()
        frame = self._frames[origin.ids, sequence_index] = _frame_of(origin, sequence_index)
        return frame


class _Frame(NamedTuple):
    """What the spans of one sequence's steps have in common, serialised."""

    before_id: bytes
    after_id: bytes
    attributes: bytes
    flags: bytes


def _frame_of(origin: Origin, sequence_index: int) -> _Frame:
    fields = Span(
        trace_id=origin.trace_id,
        span_id=bytes(8),
        trace_state=origin.trace_state,
        parent_span_id=origin.ids.decode(sequence_index),
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
        attributes_bytes(own),
        Span(flags=origin.span_flags).SerializeToString(),
    )
