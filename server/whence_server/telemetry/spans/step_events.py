"""Steps as events of their sequence's `decode` span, in the proposed token-level conventions.

Source: open-telemetry/semantic-conventions-genai#75. What the proposal has no words for stands
beside it as `whence.*`; what the engine does not report is left out. So are a step's costs besides
its times, because a thousand steps then fit into a span of a megabyte.
"""

import struct
from collections.abc import Callable, Sequence
from itertools import compress
from typing import NamedTuple, TypeAlias

from google.protobuf.message import Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.summary import DEFAULT_UNLIKELY_BELOW, compute_unlikely_limit, describe_choice
from whence.v1.step_pb2 import Step
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.otlp.wire import FIXED64, Heads, encode_length_delimited, make_tag
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.ahead import NUM_SCALARS, Arrays, ReadStep
from whence_server.telemetry.spans.candidates_first import Ranked, rank_candidates
from whence_server.telemetry.spans.internals import encode_array_head, encode_internals
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.pieces import (
    Doubles,
    Integers,
    TextHeads,
    serialise_attributes,
)
from whence_server.telemetry.spans.steps import compute_step_interval

_MAX_FORMS = 256
_MAX_TEXTS = 65_536
_MAX_BATCH_SIZES = 4_096

_TIME_TAG = make_tag(Span.Event.TIME_UNIX_NANO_FIELD_NUMBER, FIXED64)
_TIME = struct.Struct("<BQ").pack
_EVENT_HEADS = Heads(Span.EVENTS_FIELD_NUMBER)
_GENERATED = encode_length_delimited(Span.Event.NAME_FIELD_NUMBER, names.TOKEN_GENERATED.encode())
_SCHEDULED = encode_length_delimited(Span.Event.NAME_FIELD_NUMBER, names.TOKEN_SCHEDULED.encode())
_UNLIKELY = serialise_attributes({names.TOKEN_UNLIKELY: True}, Span.Event)

# Attributes in the order of the event, each with the optional field that it needs; None: always.
_INTEGERS = {
    names.ITERATION_TOTAL_TOKENS: None,
    names.TOKEN_RANK: "rank",
    names.DRAW_RUNNER_UP_TOKEN_ID: "runner_up_token_id",
}
_DOUBLES = {
    names.STEP_ENTROPY: "entropy",
    names.STEP_SAMPLING_ENTROPY: "sampling_entropy",
    names.DRAW_NOISE: "draw",
    names.DRAW_MARGIN: "margin",
}
_INTEGER_ARRAYS = (names.RESPONSE_TOKEN_IDS, names.PROCESSOR_NUM_KEPT)
_DOUBLE_ARRAYS = (
    names.RESPONSE_LOGPROBS,
    names.RESPONSE_SAMPLING_LOGPROBS,
    names.PROCESSOR_REMOVED_MASS,
    names.PROCESSOR_TOKEN_LOGPROBS,
)
_STEP_OPTIONALS = ("rank", "entropy", "sampling_entropy", "draw")
_DRAW_OPTIONALS = ("runner_up_token_id", "margin")
_OPTIONALS = (*_STEP_OPTIONALS, *_DRAW_OPTIONALS)
_FIRST_DOUBLE = 2
"""Index among a step's scalars of the first that is a double of its own on the event."""

_Shape: TypeAlias = tuple[int, ...]
"""Presence of each optional field, then the length of each array."""


class StepEvents:
    """Encoder of steps as events, from cached templates.

    Args:
        shorten_all: returns float32 values with the fewest digits.
        candidates: put the step's candidates on its event, beside its token.
        summary: put the step's summary on its event.
        unlikely_below: probability below which a token is flagged as unlikely.
    """

    def __init__(
        self,
        shorten_all: Callable[[Sequence[float]], list[float]],
        *,
        candidates: bool = True,
        summary: bool = True,
        unlikely_below: float = DEFAULT_UNLIKELY_BELOW,
    ) -> None:
        self._shorten_all = shorten_all
        self._candidates = candidates
        self._summary = TextHeads(names.STEP_SUMMARY, Span.Event) if summary else None
        self._unlikely_limit = compute_unlikely_limit(unlikely_below)
        self._forms: dict[_Shape, _Form] = {}
        self._scheduled: dict[int, bytes] = {}
        self._texts: dict[str, bytes] = {}

    def encode(self, origin: Origin, read: ReadStep) -> bytes:
        """Serialise a step's events, its start and its token, as fields of a Span message.

        Raises:
            ValueError: its times are negative or exceed 64 bits.
        """
        step = read[0]
        start, end = compute_step_interval(origin.start_time_ns, step.index, step.timing)
        if not 0 <= start < end < 1 << 64:
            raise ValueError(f"a step cannot last from {start} to {end} ns: times have 64 bits")
        generated = b"".join(
            (
                _TIME(_TIME_TAG, end),
                _GENERATED,
                self._summarise(origin, read),
                self._encode_numbers(origin, read),
                encode_internals(step, self._shorten_all, Span.Event)
                if step.HasField("internals")
                else b"",
            )
        )
        scheduled = _TIME(_TIME_TAG, start) + self._encode_scheduled(step.timing.batch_size)
        return b"".join(
            (_EVENT_HEADS[len(scheduled)], scheduled, _EVENT_HEADS[len(generated)], generated)
        )

    def _encode_scheduled(self, batch_size: int) -> bytes:
        made = self._scheduled.get(batch_size)
        if made is None:
            if len(self._scheduled) >= _MAX_BATCH_SIZES:
                self._scheduled.clear()
            # An upstream tells nothing of its batches.
            told = {names.ITERATION_BATCH_SIZE: batch_size} if batch_size else {}
            attributes = serialise_attributes(told, Span.Event)
            made = self._scheduled[batch_size] = _SCHEDULED + attributes
        return made

    def _summarise(self, origin: Origin, read: ReadStep) -> bytes:
        step, (token_ids, logprobs, _, num_kept, removed_mass, _), *_ = read
        unlikely = _UNLIKELY if step.logprob < self._unlikely_limit else b""
        if self._summary is None:
            return unlikely
        draw = step.draw
        summary = describe_choice(
            origin.names,
            origin.get_strategy(step.index),
            step.token_id if step.HasField("token_id") else None,
            step.logprob if step.HasField("logprob") else None,
            step.sampling_logprob if step.HasField("sampling_logprob") else None,
            step.rank if step.HasField("rank") else None,
            num_kept,
            token_ids,
            logprobs,
            draw.margin if draw.HasField("margin") else None,
            draw.runner_up_token_id if draw.HasField("runner_up_token_id") else None,
            drawn=step.HasField("draw"),
            removed_mass=removed_mass if origin.constrained else (),
        ).encode()
        return self._summary[len(summary)] + summary + unlikely

    def _encode_numbers(self, origin: Origin, read: ReadStep) -> bytes:
        step, arrays, shortened, *_ = read
        ranked = rank_candidates(read, others=self._candidates)
        num_kept = arrays[3]
        # Candidates that are left out are not among the float32 values.
        num_tried = len(arrays[1]) + len(arrays[2]) if self._candidates else 0
        effects = shortened[NUM_SCALARS + num_tried :]
        form = self._find_form(step, ranked, arrays)
        integers = [step.index + 1, step.rank, step.draw.runner_up_token_id]
        doubles = shortened[_FIRST_DOUBLE:NUM_SCALARS]
        if form.lacks_some:
            integers = [*compress(integers, form.has_integers)]
            doubles = [*compress(doubles, form.has_doubles)]
        integers += ranked.token_ids
        integers += num_kept
        doubles += ranked.logprobs
        doubles += ranked.sampling_logprobs
        doubles += effects
        return b"".join(
            (
                form.integers.encode(integers),
                self._encode_texts(origin, ranked.token_ids),
                form.doubles.encode(doubles),
            )
        )

    def _encode_texts(self, origin: Origin, token_ids: list[int]) -> bytes:
        if origin.get_text is None or not token_ids:
            return b""
        elements = b"".join([self._encode_text(text) for text in map(origin.get_text, token_ids)])
        field = Span.Event.ATTRIBUTES_FIELD_NUMBER
        return encode_array_head(names.RESPONSE_DECODED_TOKENS, len(elements), field) + elements

    def _encode_text(self, text: str) -> bytes:
        made = self._texts.get(text)
        if made is None:
            if len(self._texts) >= _MAX_TEXTS:
                self._texts.clear()
            made = ArrayValue(values=[AnyValue(string_value=text)]).SerializeToString()
            self._texts[text] = made
        return made

    def _find_form(self, step: Step, ranked: Ranked, arrays: Arrays) -> "_Form":
        # Typed as Message, because a generated HasField accepts only literal names.
        any_step: Message = step
        any_draw: Message = step.draw
        shape = (
            *map(any_step.HasField, _STEP_OPTIONALS),
            *map(any_draw.HasField, _DRAW_OPTIONALS),
            *map(len, (ranked.token_ids, *arrays[3:4])),
            *map(len, (ranked.logprobs, ranked.sampling_logprobs, *arrays[4:])),
        )
        form = self._forms.get(shape)
        if form is None:
            if len(self._forms) >= _MAX_FORMS:
                # Bounded, because callers choose the number of candidates.
                self._forms.clear()
            form = self._forms[shape] = _make_form(shape)
        return form


class _Form(NamedTuple):
    """Template of the attributes of events with the same fields."""

    lacks_some: bool
    """True if they lack some attribute that is not an array."""
    has_integers: list[bool]
    """True for each integer attribute that is present."""
    has_doubles: list[bool]
    """True for each double attribute that is present."""
    integers: Integers
    doubles: Doubles


def _make_form(shape: _Shape) -> _Form:
    there = {None, *compress(_OPTIONALS, shape)}
    has_integers = [field in there for field in _INTEGERS.values()]
    has_doubles = [field in there for field in _DOUBLES.values()]
    keys = (*_INTEGER_ARRAYS, *_DOUBLE_ARRAYS)
    lengths_of = dict(zip(keys, shape[len(_OPTIONALS) :], strict=True))
    integers: dict[str, AttributeValue] = dict.fromkeys(compress(_INTEGERS, has_integers), 0)
    integers |= {key: [0] * lengths_of[key] for key in _INTEGER_ARRAYS if lengths_of[key]}
    return _Form(
        lacks_some=not all((*has_integers, *has_doubles)),
        has_integers=has_integers,
        has_doubles=has_doubles,
        integers=Integers(integers, Span.Event),
        doubles=Doubles(
            compress(_DOUBLES, has_doubles),
            ((key, lengths_of[key]) for key in _DOUBLE_ARRAYS),
            Span.Event,
        ),
    )
