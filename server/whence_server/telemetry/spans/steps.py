"""`decode_step` spans, one for each step: the hot path, some microseconds for a span."""

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from whence.summary import DEFAULT_UNLIKELY_BELOW, ID_PREFIX
from whence.v1.step_pb2 import StepTiming
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.otlp.wire import FIXED64, Heads, make_tag
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.ahead import ReadStep
from whence_server.telemetry.spans.ids import SpanIds
from whence_server.telemetry.spans.internals import encode_internals
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.pieces import serialise_attributes
from whence_server.telemetry.spans.step_attributes import StepAttributes

SIBLING_GAP_NS = 1_000
"""Gap between siblings in nanoseconds: Jaeger does not show siblings that touch."""

_LEAST_NS = 2 * SIBLING_GAP_NS
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
    # Without max(), which takes longer than the rest: this is computed for every step.
    end = start_time_ns + timing.elapsed_ns
    lasted_ns = timing.select_ns if index == 0 else timing.forward_ns + timing.select_ns
    if lasted_ns < _LEAST_NS:  # noqa: PLR1730
        lasted_ns = _LEAST_NS
    start = end - lasted_ns + SIBLING_GAP_NS
    if start < start_time_ns:  # noqa: PLR1730
        start = start_time_ns
    least = start + SIBLING_GAP_NS
    return start, end if end > least else least  # noqa: FURB136


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
        shorten_all: returns float32 values with the fewest digits.
        candidates: put the step's candidates on its span.
        text: put the token's text on its span.
        summary: put the step's summary on its span.
        token_names: put the token's name in the span's name.
        unlikely_below: probability below which a token is flagged as unlikely.
    """

    def __init__(
        self,
        shorten_all: Callable[[Sequence[float]], list[float]],
        *,
        candidates: bool = True,
        text: bool = False,
        summary: bool = True,
        token_names: bool = False,
        unlikely_below: float = DEFAULT_UNLIKELY_BELOW,
    ) -> None:
        self._shorten_all = shorten_all
        self._attributes = StepAttributes(
            candidates=candidates,
            text=text,
            summary=summary,
            unlikely_below=unlikely_below,
        )
        self._token_names = token_names
        self._frames: dict[tuple[SpanIds, int], _Frame] = {}

    def encode(self, origin: Origin, read: ReadStep) -> bytes:
        """Serialise the step's span as a ScopeSpans message that holds it alone.

        Args:
            origin: the generation's place in its trace.
            read: the step.

        Raises:
            ValueError: its times are negative or exceed 64 bits.
        """
        step, _, _, _, _, timing, sequence_index, index = read
        ids = origin.ids
        frame = self._frames.get((ids, sequence_index)) or self._add_frame(origin, sequence_index)
        start, end = compute_step_interval(origin.start_time_ns, index, timing)
        if not 0 <= start < end < 1 << 64:
            raise ValueError(f"a span cannot last from {start} to {end} ns: times have 64 bits")
        name_head, name = _PLAIN_NAME
        if self._token_names and ((token_id := step.token_id) or step.HasField("token_id")):
            name = _NAME_BEGIN + origin.names(token_id).removeprefix(ID_PREFIX).encode()
            name_head = _NAME_HEADS[len(name)]
        before_id, after_id, attributes, flags = frame
        span = b"".join(
            (
                before_id,
                ids.get_decode_step_id(sequence_index, index),
                after_id,
                name_head,
                name,
                _KIND,
                _TIMES(_START_TAG, start, _END_TAG, end),
                attributes,
                self._attributes.encode(
                    read,
                    origin.names,
                    origin.get_strategy(index),
                    constrained=origin.constrained,
                ),
                encode_internals(step, self._shorten_all) if step.HasField("internals") else b"",
                flags,
            )
        )
        return _SPAN_HEADS[len(span)] + span

    def _add_frame(self, origin: Origin, sequence_index: int) -> "_Frame":
        if len(self._frames) >= _MAX_FRAMES:
            self._frames.clear()
        frame = self._frames[origin.ids, sequence_index] = _make_frame(origin, sequence_index)
        return frame


_KIND = Span(kind=Span.SPAN_KIND_INTERNAL).SerializeToString()
"""The field after the name."""
_NAME_HEADS = Heads(Span.NAME_FIELD_NUMBER)
_NAME_BEGIN = f"{names.DECODE_STEP} ".encode()
_PLAIN_NAME = _NAME_HEADS[len(names.DECODE_STEP)], names.DECODE_STEP.encode()


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
