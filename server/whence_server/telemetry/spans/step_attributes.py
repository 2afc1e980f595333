"""Serialised attributes of a step's span: the longest part of the hot path."""

import math
from collections.abc import Sequence
from itertools import compress
from typing import NamedTuple, TypeAlias

from google.protobuf.message import Message

from whence.v1.step_pb2 import Candidates, Step
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.pieces import Doubles, Integers

LOWEST_FLOAT32 = -(2 - 2**-23) * 2.0**127
"""Replacement of -inf among the candidates: many backends cannot store infinities."""

_MAX_FORMS = 256

_STEP_OPTIONALS = (
    *("token_id", "rank", "logprob", "sampling_logprob", "entropy", "sampling_entropy"),
    *("draw", "candidates", "processors"),
)
_DRAW_OPTIONALS = ("runner_up_token_id", "margin")
_OPTIONALS = (*_STEP_OPTIONALS, *_DRAW_OPTIONALS)
_HAS_CANDIDATES = _OPTIONALS.index("candidates")
_HAS_PROCESSORS = _OPTIONALS.index("processors")

# Attributes in the order of `StepAttributes.encode` and of the span, each with the optional field
# that it needs; None: it is always present.
_INTEGERS = {
    names.STEP_INDEX: None,
    names.STEP_BATCH_SIZE: None,
    names.STEP_CONTEXT_LENGTH: None,
    names.STEP_FORWARD_NS: None,
    names.STEP_SELECT_NS: None,
    names.TOKEN_ID: "token_id",
    names.TOKEN_RANK: "rank",
    names.DRAW_RUNNER_UP_TOKEN_ID: "runner_up_token_id",
}
_DOUBLES = {
    names.TOKEN_LOGPROB: "logprob",
    names.TOKEN_SAMPLING_LOGPROB: "sampling_logprob",
    names.STEP_ENTROPY: "entropy",
    names.STEP_SAMPLING_ENTROPY: "sampling_entropy",
    names.DRAW_NOISE: "draw",
    names.DRAW_MARGIN: "margin",
}
_INTEGER_ARRAYS = (names.CANDIDATE_TOKEN_IDS, names.PROCESSOR_NUM_KEPT)
_DOUBLE_ARRAYS = (
    names.CANDIDATE_LOGPROBS,
    names.CANDIDATE_SAMPLING_LOGPROBS,
    names.PROCESSOR_REMOVED_MASS,
    names.PROCESSOR_TOKEN_LOGPROBS,
)

_Shape: TypeAlias = tuple[tuple[bool, ...], int, int, int, int, int, int]
"""Presence of each optional field, and length of each array."""


class StepAttributes:
    """Serialiser of steps' attributes, with a cached template for each set of present fields.

    Args:
        candidates: include the step's candidates.
        text: include the token's text.
    """

    def __init__(self, *, candidates: bool, text: bool) -> None:
        self._candidates = candidates
        self._text = text
        self._forms: dict[_Shape, _Form] = {}

    def encode(self, step: Step) -> bytes:
        """Serialise a step's attributes as fields of a Span message."""
        draw, timing = step.draw, step.timing
        # Typed as Message, because a generated HasField accepts only literal names.
        any_step: Message = step
        any_draw: Message = draw
        present = (
            *map(any_step.HasField, _STEP_OPTIONALS),
            *map(any_draw.HasField, _DRAW_OPTIONALS),
        )
        integers = [
            step.index,
            timing.batch_size,
            timing.context_length,
            timing.forward_ns,
            timing.select_ns,
            step.token_id,
            step.rank,
            draw.runner_up_token_id,
        ]
        doubles = [
            step.logprob,
            step.sampling_logprob,
            step.entropy,
            step.sampling_entropy,
            draw.noise,
            draw.margin,
        ]
        token_ids: Sequence[int] = ()
        num_kept: Sequence[int] = ()
        logprobs: Sequence[float] = ()
        sampling_logprobs: Sequence[float] = ()
        removed_mass: Sequence[float] = ()
        token_logprobs: Sequence[float] = ()
        if self._candidates and present[_HAS_CANDIDATES]:
            token_ids, logprobs, sampling_logprobs = _read_candidates(step.candidates)
        if present[_HAS_PROCESSORS]:
            effects = step.processors
            num_kept = effects.num_kept[:]
            removed_mass, token_logprobs = effects.removed_mass[:], effects.token_logprobs[:]
        shape = (
            present,
            len(token_ids),
            len(num_kept),
            len(logprobs),
            len(sampling_logprobs),
            len(removed_mass),
            len(token_logprobs),
        )
        form = self._forms.get(shape) or self._add_form(shape)
        if form.lacks_some:
            integers = [*compress(integers, form.has_integers)]
            doubles = [*compress(doubles, form.has_doubles)]
        integers += token_ids
        integers += num_kept
        doubles += logprobs
        doubles += sampling_logprobs
        doubles += removed_mass
        doubles += token_logprobs
        texts = (step.text,) if self._text else ()
        return form.integers.encode(integers, texts) + form.doubles.encode(doubles)

    def _add_form(self, shape: _Shape) -> "_Form":
        if len(self._forms) >= _MAX_FORMS:
            # Bounded, because callers choose the number of candidates.
            self._forms.clear()
        form = self._forms[shape] = _make_form(shape, text=self._text)
        return form


def _read_candidates(candidates: Candidates) -> tuple[list[int], list[float], list[float]]:
    sampling_logprobs = candidates.sampling_logprobs[:]
    if -math.inf in sampling_logprobs:
        sampling_logprobs = [LOWEST_FLOAT32 if n == -math.inf else n for n in sampling_logprobs]
    return candidates.token_ids[:], candidates.logprobs[:], sampling_logprobs


class _Form(NamedTuple):
    """Template of the attributes of steps with the same fields."""

    lacks_some: bool
    """True if these steps lack some attribute that is not an array."""
    has_integers: list[bool]
    """True for each integer attribute that is present."""
    has_doubles: list[bool]
    """True for each double attribute that is present."""
    integers: Integers
    doubles: Doubles


def _make_form(shape: _Shape, *, text: bool) -> _Form:
    present, *lengths = shape
    there = {None, *compress(_OPTIONALS, present)}
    lengths_of = dict(zip((*_INTEGER_ARRAYS, *_DOUBLE_ARRAYS), lengths, strict=True))
    has_integers = [field in there for field in _INTEGERS.values()]
    has_doubles = [field in there for field in _DOUBLES.values()]
    integers: dict[str, AttributeValue] = dict.fromkeys(compress(_INTEGERS, has_integers), 0)
    if text:
        integers[names.TOKEN_TEXT] = ""
    integers |= {key: [0] * lengths_of[key] for key in _INTEGER_ARRAYS if lengths_of[key]}
    return _Form(
        lacks_some=not all((*has_integers, *has_doubles)),
        has_integers=has_integers,
        has_doubles=has_doubles,
        integers=Integers(integers),
        doubles=Doubles(
            compress(_DOUBLES, has_doubles), ((key, lengths_of[key]) for key in _DOUBLE_ARRAYS)
        ),
    )
