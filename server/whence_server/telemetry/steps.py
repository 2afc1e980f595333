"""One `decode_step` span for each step: the hot path, a few microseconds a span."""

from collections.abc import Callable
from itertools import compress
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias, cast

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from whence.v1.step_pb2 import Step, StepTiming
from whence_server.telemetry import names
from whence_server.telemetry.origin import Origin

SIBLING_GAP_NS = 1_000
"""Spans that follow one another never touch: Jaeger leaves out siblings that do."""


_HasField: TypeAlias = Callable[[str], bool]


class _Attribute(NamedTuple):
    """An attribute of a step's span, and the field that it is read from."""

    key: str
    path: str
    integer: bool = True


_ALWAYS = (
    _Attribute(names.SEQUENCE_INDEX, "sequence_index"),
    _Attribute(names.STEP_INDEX, "index"),
    _Attribute(names.STEP_BATCH_SIZE, "timing.batch_size"),
    _Attribute(names.STEP_CONTEXT_LENGTH, "timing.context_length"),
    _Attribute(names.STEP_FORWARD_NS, "timing.forward_ns"),
    _Attribute(names.STEP_SELECT_NS, "timing.select_ns"),
)
# What a step may lack. A draw's noise has no presence of its own: it is there with the draw.
_OF_STEP = {
    "token_id": _Attribute(names.TOKEN_ID, "token_id"),
    "logprob": _Attribute(names.TOKEN_LOGPROB, "logprob", integer=False),
    "sampling_logprob": _Attribute(names.TOKEN_SAMPLING_LOGPROB, "sampling_logprob", integer=False),
    "rank": _Attribute(names.TOKEN_RANK, "rank"),
    "entropy": _Attribute(names.STEP_ENTROPY, "entropy", integer=False),
    "sampling_entropy": _Attribute(names.STEP_SAMPLING_ENTROPY, "sampling_entropy", integer=False),
    "draw": _Attribute(names.DRAW_NOISE, "draw.noise", integer=False),
}
_OF_DRAW = {
    "runner_up_token_id": _Attribute(names.DRAW_RUNNER_UP_TOKEN_ID, "draw.runner_up_token_id"),
    "margin": _Attribute(names.DRAW_MARGIN, "draw.margin", integer=False),
}


def step_interval(start_time_ns: int, timing: StepTiming) -> tuple[int, int]:
    """Gives a step's Unix times: at least 1 us long, never before its request's arrival.

    It leaves the first microsecond of its time free, so that it does not touch the step
    before.
    """
    end = start_time_ns + timing.elapsed_ns
    start = end - timing.forward_ns - timing.select_ns + SIBLING_GAP_NS
    start = max(min(start, end - SIBLING_GAP_NS), start_time_ns)
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
    of one that has them already, a tenth of it. So one message is kept for each set of fields
    that steps come with, and filled again for every step.
    """

    def __init__(self) -> None:
        self._moulds: dict[tuple[bool, ...], _Mould] = {}

    def encode(self, origin: Origin, step: Step) -> bytes:
        """Serialises the step's span as a ScopeSpans message that holds it alone."""
        has_field = cast("_HasField", step.HasField)
        draw_has_field = cast("_HasField", step.draw.HasField)
        present = (*map(has_field, _OF_STEP), *map(draw_has_field, _OF_DRAW))
        mould = self._moulds.get(present)
        if mould is None:
            mould = self._moulds[present] = _cast_mould(present)
        span, sequence_index, index = mould.span, step.sequence_index, step.index
        span.trace_id = origin.trace_id
        span.span_id = origin.ids.decode_step(sequence_index, index)
        span.trace_state = origin.trace_state
        span.parent_span_id = origin.ids.decode(sequence_index)
        span.flags = origin.span_flags
        span.start_time_unix_nano, span.end_time_unix_nano = step_interval(
            origin.start_time_ns, step.timing
        )
        mould.generation_id.string_value = origin.generation_id
        for value, integer in zip(mould.ints, mould.read_ints(step), strict=True):
            value.int_value = integer
        for value, number in zip(mould.floats, mould.read_floats(step), strict=True):
            value.double_value = number
        return mould.message.SerializeToString()


class _Mould(NamedTuple):
    """A message with one span, and the places in it where a step's values go."""

    message: ScopeSpans
    span: Span
    generation_id: AnyValue
    ints: list[AnyValue]
    read_ints: Callable[[Step], tuple[int, ...]]
    floats: list[AnyValue]
    read_floats: Callable[[Step], tuple[float, ...]]


def _cast_mould(present: tuple[bool, ...]) -> _Mould:
    message = ScopeSpans()
    span = message.spans.add(name=names.DECODE_STEP, kind=Span.SPAN_KIND_INTERNAL)
    generation_id = span.attributes.add(key=names.GENERATION_ID).value
    attributes = (*_ALWAYS, *compress((*_OF_STEP.values(), *_OF_DRAW.values()), present))
    ints = [attribute for attribute in attributes if attribute.integer]
    floats = [attribute for attribute in attributes if not attribute.integer]
    return _Mould(
        message,
        span,
        generation_id,
        ints=[span.attributes.add(key=attribute.key).value for attribute in ints],
        read_ints=_reader(ints),
        floats=[span.attributes.add(key=attribute.key).value for attribute in floats],
        read_floats=_reader(floats),
    )


def _reader(attributes: list[_Attribute]) -> Callable[[Step], tuple[Any, ...]]:
    if len(attributes) > 1:
        return attrgetter(*(attribute.path for attribute in attributes))
    # attrgetter gives a tuple only for more than one.
    return lambda step: tuple(attrgetter(attribute.path)(step) for attribute in attributes)
