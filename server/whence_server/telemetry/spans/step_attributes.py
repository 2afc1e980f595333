"""Serialised attributes of a step's span: the longest part of the hot path."""

from itertools import compress
from typing import Any, NamedTuple, TypeAlias

from whence.summary import TokenNames, compute_unlikely_limit, describe_choice
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.ahead import NUM_SCALARS, ReadStep
from whence_server.telemetry.spans.pieces import (
    Doubles,
    Integers,
    TextHeads,
    serialise_attributes,
)

_MAX_FORMS = 256

# Fields that may be absent, in the order of a shape.
_OPTIONALS = (
    *("token_id", "rank", "logprob", "sampling_logprob", "entropy", "sampling_entropy"),
    *("draw", "runner_up_token_id", "margin", "timing"),
)

# Attributes in the order of `StepAttributes.encode` and of the span, each with the optional field
# that it needs; None: it is always present.
_INTEGERS = {
    names.STEP_INDEX: None,
    names.STEP_BATCH_SIZE: "timing",
    names.STEP_CONTEXT_LENGTH: "timing",
    names.STEP_FORWARD_NS: "timing",
    names.STEP_SELECT_NS: "timing",
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

_Shape: TypeAlias = tuple[int, ...]
"""Presence of each optional field, then the length of each array."""

_NONE: list[Any] = []
_UNLIKELY = serialise_attributes({names.TOKEN_UNLIKELY: True})


class StepAttributes:
    """Serialiser of steps' attributes, with a cached template for each set of present fields.

    Args:
        candidates: include the step's candidates.
        text: include the token's text.
        summary: include the summary.
        unlikely_below: probability below which a token is flagged as unlikely.
    """

    def __init__(
        self,
        *,
        candidates: bool,
        text: bool,
        summary: bool,
        unlikely_below: float,
    ) -> None:
        self._candidates = candidates
        self._text = TextHeads(names.TOKEN_TEXT) if text else None
        self._summary = TextHeads(names.STEP_SUMMARY) if summary else None
        self._unlikely_limit = compute_unlikely_limit(unlikely_below)
        self._forms: dict[_Shape, _Form] = {}

    def encode(
        self, read: ReadStep, token_names: TokenNames, strategy: str, *, constrained: bool
    ) -> bytes:
        """Serialise a step's attributes as fields of a Span message.

        Args:
            read: the step.
            token_names: names of the generation's tokens, for the summary.
            strategy: name of Decoding.strategy.
            constrained: True if the first processor is the request's constraint.
        """
        step, arrays, doubles, draw, scalars, timing, _, index = read
        token_ids, logprobs, sampling_logprobs, num_kept, removed_mass, token_logprobs = arrays
        token_id, rank, runner_up = step.token_id, step.rank, draw.runner_up_token_id
        logprob, sampling_logprob, entropy, sampling_entropy, noise, margin = scalars
        # A value that is not zero is present: asking the message takes longer.
        has_id = token_id != 0 or step.HasField("token_id")
        has_rank = rank != 0 or step.HasField("rank")
        has_logprob = logprob != 0 or step.HasField("logprob")
        has_sampling_logprob = sampling_logprob != 0 or step.HasField("sampling_logprob")
        has_draw = noise != 0 or step.HasField("draw")
        has_runner_up = runner_up != 0 or draw.HasField("runner_up_token_id")
        has_margin = margin != 0 or draw.HasField("margin")
        summary = summary_head = b""
        if self._summary is not None:
            line = describe_choice(
                token_names,
                strategy,
                token_id if has_id else None,
                logprob if has_logprob else None,
                sampling_logprob if has_sampling_logprob else None,
                rank if has_rank else None,
                num_kept,
                token_ids,
                logprobs,
                margin if has_margin else None,
                runner_up if has_runner_up else None,
                drawn=has_draw,
                removed_mass=removed_mass if constrained else (),
            )
            summary = line.encode()
            summary_head = self._summary[len(summary)]
        text = text_head = b""
        if self._text is not None:
            text = step.text.encode()
            text_head = self._text[len(text)]
        if not self._candidates:
            token_ids = logprobs = _NONE
        shape = (
            has_id,
            has_rank,
            has_logprob,
            has_sampling_logprob,
            entropy != 0 or step.HasField("entropy"),
            sampling_entropy != 0 or step.HasField("sampling_entropy"),
            has_draw,
            has_runner_up,
            has_margin,
            # An upstream tells nothing of its batches.
            timing.batch_size != 0,
            len(token_ids),
            len(num_kept),
            len(logprobs),
            len(sampling_logprobs),
            len(removed_mass),
            len(token_logprobs),
        )
        form = self._forms.get(shape) or self._add_form(shape)
        integers = [
            index,
            timing.batch_size,
            timing.context_length,
            timing.forward_ns,
            timing.select_ns,
            token_id,
            rank,
            runner_up,
        ]
        if form.lacks_some:
            integers = [*compress(integers, form.has_integers)]
            doubles[:NUM_SCALARS] = compress(doubles[:NUM_SCALARS], form.has_doubles)
        integers += token_ids
        integers += num_kept
        return b"".join(
            (
                summary_head,
                summary,
                _UNLIKELY if logprob < self._unlikely_limit else b"",
                text_head,
                text,
                form.integers.encode(integers),
                form.doubles.encode(doubles),
            )
        )

    def _add_form(self, shape: _Shape) -> "_Form":
        if len(self._forms) >= _MAX_FORMS:
            # Bounded, because callers choose the number of candidates.
            self._forms.clear()
        form = self._forms[shape] = _make_form(shape)
        return form


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


def _make_form(shape: _Shape) -> _Form:
    there = {None, *compress(_OPTIONALS, shape)}
    lengths = shape[len(_OPTIONALS) :]
    lengths_of = dict(zip((*_INTEGER_ARRAYS, *_DOUBLE_ARRAYS), lengths, strict=True))
    has_integers = [field in there for field in _INTEGERS.values()]
    has_doubles = [field in there for field in _DOUBLES.values()]
    integers: dict[str, AttributeValue] = dict.fromkeys(compress(_INTEGERS, has_integers), 0)
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
