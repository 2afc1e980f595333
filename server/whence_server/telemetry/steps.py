"""One `decode_step` span for each step: the hot path, some ten microseconds a span."""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, compress
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias, cast

from google.protobuf.message import Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from whence.v1.step_pb2 import Step, StepTiming
from whence_server.telemetry import names
from whence_server.telemetry.inside import inside_attributes
from whence_server.telemetry.origin import Origin
from whence_server.telemetry.wire import length_delimited

SIBLING_GAP_NS = 1_000
"""Spans that follow one another never touch: Jaeger leaves out siblings that do."""

LOWEST_FLOAT32 = -(2 - 2**-23) * 2.0**127
"""Stands for -inf among the candidates: many backends cannot hold an infinity."""

_MAX_MOULDS = 256
# A number whose bytes are nowhere in what stands around it.
_MARK = -1.2345678901234567e-300
_MARK_BYTES = struct.pack("<d", _MARK)

_HasField: TypeAlias = Callable[[str], bool]

# Attributes, each after the field that it is read from.
_TIMING_INTS = {
    "batch_size": names.STEP_BATCH_SIZE,
    "context_length": names.STEP_CONTEXT_LENGTH,
    "forward_ns": names.STEP_FORWARD_NS,
    "select_ns": names.STEP_SELECT_NS,
}
_STEP_INTS = {"token_id": names.TOKEN_ID, "rank": names.TOKEN_RANK}
_STEP_FLOATS = {
    "logprob": names.TOKEN_LOGPROB,
    "sampling_logprob": names.TOKEN_SAMPLING_LOGPROB,
    "entropy": names.STEP_ENTROPY,
    "sampling_entropy": names.STEP_SAMPLING_ENTROPY,
}
_DRAW_INTS = {"runner_up_token_id": names.DRAW_RUNNER_UP_TOKEN_ID}
_DRAW_FLOATS = {"margin": names.DRAW_MARGIN}
_NOISE = {"noise": names.DRAW_NOISE}  # has no presence of its own: it is there with the draw
_STEP_OPTIONALS = (*_STEP_INTS, *_STEP_FLOATS, "draw", "candidates", "processors")
_DRAW_OPTIONALS = (*_DRAW_INTS, *_DRAW_FLOATS)
_INT_ARRAYS = (names.CANDIDATE_TOKEN_IDS, names.PROCESSOR_NUM_KEPT)
_FLOAT_ARRAYS = (
    names.CANDIDATE_LOGPROBS,
    names.CANDIDATE_SAMPLING_LOGPROBS,
    names.PROCESSOR_REMOVED_MASS,
    names.PROCESSOR_TOKEN_LOGPROBS,
)
_NO_ARRAYS: tuple[Sequence[Any], ...] = ((),) * (len(_INT_ARRAYS) + len(_FLOAT_ARRAYS))


def step_interval(start_time_ns: int, index: int, timing: StepTiming) -> tuple[int, int]:
    """Gives a step's Unix times: at least 1 us long, never before its request's arrival.

    It leaves the first microsecond of its time free, so that it does not touch the step
    before. The forward pass behind a first token is the prompt's: `prefill` has it.

    Args:
        start_time_ns: the request's arrival.
        index: the step's.
        timing: the step's.
    """
    end = start_time_ns + timing.elapsed_ns
    lasted_ns = timing.select_ns if index == 0 else timing.forward_ns + timing.select_ns
    start = max(min(end - lasted_ns, end - 2 * SIBLING_GAP_NS) + SIBLING_GAP_NS, start_time_ns)
    return start, max(end, start + SIBLING_GAP_NS)


def num_step_spans(origin: Origin, sequence_index: int, step_spans: int | None) -> int:
    """Says how many of a sequence's steps, from the first on, have a span of their own.

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

    Building a span with its attributes from nothing costs protobuf 30 us; filling the values
    of one that has them already, a fraction of it. So one message is kept for each set of
    fields that steps come with, and filled again for every step.

    Args:
        candidates: whether spans carry the step's candidates.
        text: whether they carry the token's text.
    """

    def __init__(self, *, candidates: bool = True, text: bool = False) -> None:
        self._candidates = candidates
        self._text = text
        self._moulds: dict[object, _Mould] = {}

    def encode(self, origin: Origin, step: Step) -> bytes:
        """Serialises the step's span as a ScopeSpans message that holds it alone."""
        draw, timing = step.draw, step.timing
        present = (
            *map(cast("_HasField", step.HasField), _STEP_OPTIONALS),
            *map(cast("_HasField", draw.HasField), _DRAW_OPTIONALS),
        )
        arrays = self._arrays_of(step) if present[-4] or present[-3] else _NO_ARRAYS
        shape: _Shape = (present, *map(len, arrays))
        mould = self._moulds.get(shape) or self._cast(shape)
        span, sequence_index, index = mould.span, step.sequence_index, step.index
        span.trace_id = origin.trace_id
        span.span_id = origin.ids.decode_step(sequence_index, index)
        span.trace_state = origin.trace_state
        span.parent_span_id = origin.ids.decode(sequence_index)
        span.flags = origin.span_flags
        span.start_time_unix_nano, span.end_time_unix_nano = step_interval(
            origin.start_time_ns, index, timing
        )
        mould.generation_id.string_value = origin.generation_id
        if self._text:
            mould.text.string_value = step.text
        ids, num_kept, *float_arrays = arrays
        integers = [
            sequence_index,
            index,
            *mould.timing_ints(timing),
            *mould.step_ints(step),
            *mould.draw_ints(draw),
            *ids,
            *num_kept,
        ]
        for place, integer in zip(mould.ints, integers, strict=True):
            place.int_value = integer
        floats = [*mould.step_floats(step), *mould.draw_floats(draw)]
        for array in float_arrays:
            floats += array
        inside = inside_attributes(step) if step.HasField("internals") else b""
        return length_delimited(
            ScopeSpans.SPANS_FIELD_NUMBER,
            span.SerializeToString() + mould.floats.filled(floats) + inside,
        )

    def _arrays_of(self, step: Step) -> tuple[Sequence[Any], ...]:
        """The step's arrays: those of integers, those of floats, as they are named above."""
        effects = step.processors
        ids: Sequence[int] = ()
        logprobs: Sequence[float] = ()
        sampling_logprobs: Sequence[float] = ()
        if self._candidates:
            candidates = step.candidates
            ids, logprobs = candidates.token_ids[:], candidates.logprobs[:]
            sampling_logprobs = candidates.sampling_logprobs[:]
            if -math.inf in sampling_logprobs:
                sampling_logprobs = [
                    LOWEST_FLOAT32 if n == -math.inf else n for n in sampling_logprobs
                ]
        return (
            ids,
            effects.num_kept[:],
            logprobs,
            sampling_logprobs,
            effects.removed_mass[:],
            effects.token_logprobs[:],
        )

    def _cast(self, shape: "_Shape") -> "_Mould":
        if len(self._moulds) >= _MAX_MOULDS:
            self._moulds.clear()  # callers choose how many candidates there are
        mould = self._moulds[shape] = _cast_mould(shape, self._text)
        return mould


_Shape: TypeAlias = tuple[tuple[bool, ...] | int, ...]
"""Which optional fields there are, and how long each array is."""


class _Mould(NamedTuple):
    """A span without its floats, the places in it where a step's values go, and their readers."""

    span: Span
    generation_id: AnyValue
    text: AnyValue
    ints: list[AnyValue]
    floats: "_Floats"
    timing_ints: Callable[[Message], Sequence[int]]
    step_ints: Callable[[Message], Sequence[int]]
    step_floats: Callable[[Message], Sequence[float]]
    draw_ints: Callable[[Message], Sequence[int]]
    draw_floats: Callable[[Message], Sequence[float]]


def _cast_mould(shape: _Shape, text: bool) -> _Mould:
    present, *lengths = shape
    there = set(compress((*_STEP_OPTIONALS, *_DRAW_OPTIONALS), cast("tuple[bool, ...]", present)))
    of_draw = there | {"noise"} if "draw" in there else set()
    span = Span(name=names.DECODE_STEP, kind=Span.SPAN_KIND_INTERNAL)
    num_int_arrays = len(_INT_ARRAYS)
    int_lengths = cast("list[int]", lengths[:num_int_arrays])
    float_lengths = cast("list[int]", lengths[num_int_arrays:])
    return _Mould(
        span,
        generation_id=_place(span, names.GENERATION_ID),
        text=_place(span, names.TOKEN_TEXT) if text else AnyValue(),
        ints=[
            _place(span, names.SEQUENCE_INDEX),
            _place(span, names.STEP_INDEX),
            *_places(span, _TIMING_INTS, _TIMING_INTS),
            *_places(span, _STEP_INTS, there),
            *_places(span, _DRAW_INTS, of_draw),
            *chain(*map(partial(_array, span), _INT_ARRAYS, int_lengths)),
        ],
        floats=_Floats(there, of_draw, float_lengths),
        timing_ints=_reader(_TIMING_INTS, _TIMING_INTS),
        step_ints=_reader(_STEP_INTS, there),
        step_floats=_reader(_STEP_FLOATS, there),
        draw_ints=_reader(_DRAW_INTS, of_draw),
        draw_floats=_reader(_NOISE | _DRAW_FLOATS, of_draw),
    )


class _Floats:
    """A span's attributes that hold doubles, serialised but for the doubles themselves.

    A double takes eight bytes whatever it is: what stands between two never changes.
    """

    def __init__(self, of_step: set[str], of_draw: set[str], lengths: list[int]) -> None:
        span = Span()
        places = [
            *_places(span, _STEP_FLOATS, of_step),
            *_places(span, _NOISE | _DRAW_FLOATS, of_draw),
            *chain(*map(partial(_array, span), _FLOAT_ARRAYS, lengths)),
        ]
        for place in places:
            place.double_value = _MARK
        between = span.SerializeToString().split(_MARK_BYTES)
        self._parts: list[bytes | float] = [_MARK] * (2 * len(places))
        self._parts[::2] = between[:-1]
        self._pack = struct.Struct("<" + "".join(f"{len(b)}sd" for b in between[:-1])).pack

    def filled(self, numbers: list[float]) -> bytes:
        """Serialises the attributes with these numbers."""
        self._parts[1::2] = numbers
        return self._pack(*self._parts)


def _place(span: Span, key: str) -> AnyValue:
    return span.attributes.add(key=key).value


def _places(span: Span, fields: dict[str, str], wanted: Iterable[str]) -> list[AnyValue]:
    return [_place(span, key) for field, key in fields.items() if field in wanted]


def _array(span: Span, key: str, length: int) -> list[AnyValue]:
    if not length:
        return []
    values = _place(span, key).array_value.values
    return [values.add() for _ in range(length)]


def _reader(fields: Iterable[str], wanted: Iterable[str]) -> Callable[[Message], Any]:
    found = [field for field in fields if field in wanted]
    if not found:
        return lambda _: ()
    if len(found) == 1:  # attrgetter gives a tuple only for more than one
        return lambda message: (getattr(message, found[0]),)
    return attrgetter(*found)
