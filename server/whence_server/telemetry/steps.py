"""One `decode_step` span for each step: the hot path, some microseconds a span."""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from operator import attrgetter, getitem
from typing import Any, NamedTuple, TypeAlias, cast

from google.protobuf.message import Message
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from whence.v1.step_pb2 import Step, StepTiming
from whence_server.telemetry import names
from whence_server.telemetry.attributes import AttributeValue
from whence_server.telemetry.ids import SpanIds
from whence_server.telemetry.inside import inside_attributes
from whence_server.telemetry.origin import Origin
from whence_server.telemetry.pieces import (
    Doubles,
    IntegerArrays,
    Integers,
    attributes_bytes,
    integer_attributes,
    integer_elements,
    text_bytes,
)
from whence_server.telemetry.wire import FIXED64, Heads, tag

SIBLING_GAP_NS = 1_000
"""Spans that follow one another never touch: Jaeger leaves out siblings that do."""

LOWEST_FLOAT32 = -(2 - 2**-23) * 2.0**127
"""Stands for -inf among the candidates: many backends cannot hold an infinity."""

_MAX_FORMS = 256
_MAX_FRAMES = 4_096
# A span begins with its trace's id, 16 bytes, and its own, 8, each after a tag and a length.
_ID_BEGIN, _ID_END = 20, 28
_START_TAG = tag(Span.START_TIME_UNIX_NANO_FIELD_NUMBER, FIXED64)
_END_TAG = tag(Span.END_TIME_UNIX_NANO_FIELD_NUMBER, FIXED64)
_TIMES = struct.Struct("<BQBQ").pack
_SPAN_HEADS = Heads(ScopeSpans.SPANS_FIELD_NUMBER)

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
_HAS_CANDIDATES = _STEP_OPTIONALS.index("candidates")
_HAS_PROCESSORS = _STEP_OPTIONALS.index("processors")
_INT_ARRAYS = (names.CANDIDATE_TOKEN_IDS, names.PROCESSOR_NUM_KEPT)
_FLOAT_ARRAYS = (
    names.CANDIDATE_LOGPROBS,
    names.CANDIDATE_SAMPLING_LOGPROBS,
    names.PROCESSOR_REMOVED_MASS,
    names.PROCESSOR_TOKEN_LOGPROBS,
)
_NO_FLOAT_ARRAYS: tuple[Sequence[float], ...] = ((),) * len(_FLOAT_ARRAYS)


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
    start = max(end - max(lasted_ns, 2 * SIBLING_GAP_NS) + SIBLING_GAP_NS, start_time_ns)
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

    Building a span with its attributes from nothing costs protobuf 30 us. So what is the same
    in all spans is serialised once: for each sequence the fields around the ids and times, for
    each attribute its key, for each set of fields that steps come with what is between their
    numbers. The bytes are those that opentelemetry-proto's own message serialises to.

    Args:
        candidates: whether spans carry the step's candidates.
        text: whether they carry the token's text.
    """

    def __init__(self, *, candidates: bool = True, text: bool = False) -> None:
        self._candidates = candidates
        self._text = text
        self._integers = _integer_pieces()
        elements = integer_elements()
        self._candidate_ids, self._num_kept = (
            IntegerArrays(key, elements).of for key in _INT_ARRAYS
        )
        self._forms: dict[_Shape, _Form] = {}
        self._frames: dict[tuple[SpanIds, int], _Frame] = {}

    def encode(self, origin: Origin, step: Step) -> bytes:
        """Serialises the step's span as a ScopeSpans message that holds it alone.

        Raises:
            ValueError: its times are none that a span can have.
        """
        draw, timing, ids = step.draw, step.timing, origin.ids
        sequence_index, index = step.sequence_index, step.index
        # A generated HasField takes no variable for a name; any message's does.
        any_step: Message = step
        any_draw: Message = draw
        present = (
            *map(any_step.HasField, _STEP_OPTIONALS),
            *map(any_draw.HasField, _DRAW_OPTIONALS),
        )
        int_arrays, float_arrays = b"", _NO_FLOAT_ARRAYS
        if present[_HAS_CANDIDATES] or present[_HAS_PROCESSORS]:
            int_arrays, float_arrays = self._arrays_of(step, present)
        shape: _Shape = (present, *map(len, float_arrays))
        form = self._forms.get(shape) or self._new_form(shape)
        frame = self._frames.get((ids, sequence_index)) or self._new_frame(origin, sequence_index)
        start, end = step_interval(origin.start_time_ns, index, timing)
        if not 0 <= start < end < 1 << 64:
            raise ValueError(f"a span cannot last from {start} to {end} ns")
        integers = (index, *form.timing_ints(timing), *form.step_ints(step), *form.draw_ints(draw))
        floats = [*form.step_floats(step), *form.draw_floats(draw)]
        for array in float_arrays:
            floats += array
        span = b"".join(
            (
                frame.before_id,
                ids.decode_step(sequence_index, index),
                frame.after_id,
                _TIMES(_START_TAG, start, _END_TAG, end),
                frame.attributes,
                *map(getitem, form.integers, integers),
                text_bytes(names.TOKEN_TEXT, step.text) if self._text else b"",
                int_arrays,
                form.floats(floats),
                inside_attributes(step) if step.HasField("internals") else b"",
                frame.flags,
            )
        )
        return _SPAN_HEADS[len(span)] + span

    def _arrays_of(
        self, step: Step, present: tuple[bool, ...]
    ) -> tuple[bytes, tuple[Sequence[float], ...]]:
        """The step's arrays: those of integers, serialised, and those of floats."""
        ids = num_kept = b""
        logprobs: Sequence[float] = ()
        sampling_logprobs: Sequence[float] = ()
        removed_mass: Sequence[float] = ()
        token_logprobs: Sequence[float] = ()
        if self._candidates and present[_HAS_CANDIDATES]:
            candidates = step.candidates
            ids = self._candidate_ids(candidates.token_ids[:])
            logprobs, sampling_logprobs = candidates.logprobs[:], candidates.sampling_logprobs[:]
            if -math.inf in sampling_logprobs:
                sampling_logprobs = [
                    LOWEST_FLOAT32 if n == -math.inf else n for n in sampling_logprobs
                ]
        if present[_HAS_PROCESSORS]:
            effects = step.processors
            num_kept = self._num_kept(effects.num_kept[:])
            removed_mass, token_logprobs = effects.removed_mass[:], effects.token_logprobs[:]
        return ids + num_kept, (logprobs, sampling_logprobs, removed_mass, token_logprobs)

    def _new_form(self, shape: "_Shape") -> "_Form":
        if len(self._forms) >= _MAX_FORMS:
            self._forms.clear()  # callers choose how many candidates there are
        form = self._forms[shape] = _form_of(shape, self._integers)
        return form

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


_Shape: TypeAlias = tuple[tuple[bool, ...] | int, ...]
"""Which optional fields there are, and how long each array of floats is."""


class _Form(NamedTuple):
    """What the spans of steps with the same fields have in common, and what reads the rest."""

    integers: list[Integers]
    """The attributes, in the order of the integers that are read."""
    floats: Callable[[Sequence[float]], bytes]
    timing_ints: Callable[[Message], Sequence[int]]
    step_ints: Callable[[Message], Sequence[int]]
    step_floats: Callable[[Message], Sequence[float]]
    draw_ints: Callable[[Message], Sequence[int]]
    draw_floats: Callable[[Message], Sequence[float]]


def _form_of(shape: _Shape, pieces: dict[str, Integers]) -> _Form:
    present, *lengths = shape
    there = set(compress((*_STEP_OPTIONALS, *_DRAW_OPTIONALS), cast("tuple[bool, ...]", present)))
    of_draw = there | {"noise"} if "draw" in there else set()
    integers = [
        names.STEP_INDEX,
        *_keys(_TIMING_INTS, _TIMING_INTS),
        *_keys(_STEP_INTS, there),
        *_keys(_DRAW_INTS, of_draw),
    ]
    floats = [*_keys(_STEP_FLOATS, there), *_keys(_NOISE | _DRAW_FLOATS, of_draw)]
    arrays = zip(_FLOAT_ARRAYS, cast("list[int]", lengths), strict=True)
    return _Form(
        integers=[pieces[key] for key in integers],
        floats=Doubles(floats, arrays).of,
        timing_ints=_reader(_TIMING_INTS, _TIMING_INTS),
        step_ints=_reader(_STEP_INTS, there),
        step_floats=_reader(_STEP_FLOATS, there),
        draw_ints=_reader(_DRAW_INTS, of_draw),
        draw_floats=_reader(_NOISE | _DRAW_FLOATS, of_draw),
    )


def _integer_pieces() -> dict[str, Integers]:
    fields = _TIMING_INTS | _STEP_INTS | _DRAW_INTS
    return {key: integer_attributes(key) for key in (names.STEP_INDEX, *fields.values())}


def _keys(fields: dict[str, str], wanted: Iterable[str]) -> list[str]:
    return [key for field, key in fields.items() if field in wanted]


def _reader(fields: Iterable[str], wanted: Iterable[str]) -> Callable[[Message], Any]:
    found = [field for field in fields if field in wanted]
    if not found:
        return lambda _: ()
    if len(found) == 1:  # attrgetter gives a tuple only for more than one
        return lambda message: (getattr(message, found[0]),)
    return attrgetter(*found)
