"""Typed views of recorded steps; absent is None, and zero always means zero."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from whence.context import Context
from whence.internals import Internals
from whence.v1.step_pb2 import Step


class ProcessorEffect(NamedTuple):
    """What one logits processor did to a step's distribution."""

    name: str
    num_kept: int
    """Tokens that could still be drawn afterwards."""
    removed_mass: float
    """Probability mass taken away before renormalising, in [0, 1]."""
    token_logprob: float
    """log p(chosen token) afterwards, in nats."""


class Draw(NamedTuple):
    """The random choice behind a sampled token: an exponential race (see step.proto)."""

    noise: float
    """-log(u) of the chosen token."""
    runner_up_token_id: int | None
    """The token that would have won without the chosen one."""
    margin: float | None
    """Nats by which the chosen token could have been less likely and still have won."""


class Timing(NamedTuple):
    """When a step happened and what it cost."""

    elapsed_ns: int
    """From the request's arrival until the token was ready."""
    forward_ns: int
    """Wall time of the whole batch's forward pass."""
    select_ns: int
    """And of choosing its tokens."""
    batch_size: int
    """Sequences decoded together in this step."""
    context_length: int
    """Positions in this sequence's key-value cache."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token with its log probabilities at one step: a most likely one, or one asked for."""

    token_id: int
    logprob: float
    """Under the model's own distribution, in nats."""
    sampling_logprob: float | None
    """Under the distribution drawn from; -inf where a processor removed the token."""
    _text_of: Callable[[int], str] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The token's own text, from the model's vocabulary.

        Bytes that are no character by themselves are named: "<0xF0 0x9F>".
        Asked for the first time, `Client` fetches the vocabulary; `AsyncClient` cannot in
        a property, and needs `await client.vocabulary()` first.

        Raises:
            FailedPreconditionError: of an `AsyncClient`, the vocabulary is not loaded yet.
        """
        return self._text_of(self.token_id)

    @property
    def probability(self) -> float:
        """Under the model's own distribution."""
        return math.exp(self.logprob)

    @property
    def sampling_probability(self) -> float | None:
        """Under the distribution drawn from."""
        return _exp(self.sampling_logprob)


@dataclass(frozen=True, slots=True)
class Token:
    """One decoding step: the token that was chosen, and the decision that chose it."""

    step: Step
    """The record itself; see step.proto."""
    _processor_names: tuple[str, ...] = field(repr=False, compare=False)
    _text_of: Callable[[int], str] = field(repr=False, compare=False)
    _context: Context = field(repr=False, compare=False)
    _logprob_token_ids: tuple[int, ...] = field(default=(), repr=False, compare=False)

    @property
    def text(self) -> str:
        """Text that became certain with this token; may be empty (see step.proto)."""
        return self.step.text

    @property
    def token_text(self) -> str:
        """The token's own text, from the model's vocabulary; see `Candidate.text`."""
        return "" if self.token_id is None else self._text_of(self.token_id)

    @property
    def token_id(self) -> int | None:
        """None only where the content policy keeps ids out of the journal."""
        return self.step.token_id if self.step.HasField("token_id") else None

    @property
    def index(self) -> int:
        """Position among its sequence's generated tokens, from 0."""
        return self.step.index

    @property
    def sequence_index(self) -> int:
        """Which returned sequence this token extends, from 0."""
        return self.step.sequence_index

    @property
    def text_bytes(self) -> range:
        """The bytes of its sequence's text, in UTF-8, that this token itself made."""
        return range(self.step.text_begin_byte, self.step.text_end_byte)

    @property
    def logprob(self) -> float | None:
        """Under the model's own distribution, in nats; None for a prompt's first token."""
        return self.step.logprob if self.step.HasField("logprob") else None

    @property
    def probability(self) -> float | None:
        """Under the model's own distribution."""
        return _exp(self.logprob)

    @property
    def sampling_logprob(self) -> float | None:
        """Under the distribution that it was drawn from, after all processors, in nats."""
        return self.step.sampling_logprob if self.step.HasField("sampling_logprob") else None

    @property
    def sampling_probability(self) -> float | None:
        """Under the distribution that it was drawn from."""
        return _exp(self.sampling_logprob)

    @property
    def rank(self) -> int | None:
        """How many tokens the model itself held more likely."""
        return self.step.rank if self.step.HasField("rank") else None

    @property
    def entropy(self) -> float | None:
        """Of the model's own distribution, in nats."""
        return self.step.entropy if self.step.HasField("entropy") else None

    @property
    def sampling_entropy(self) -> float | None:
        """Of the distribution drawn from, in nats."""
        return self.step.sampling_entropy if self.step.HasField("sampling_entropy") else None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The step's most likely tokens, most likely first; empty where none were traced."""
        recorded = self.step.candidates
        return self._listed(recorded.token_ids, recorded.logprobs, recorded.sampling_logprobs)

    @property
    def requested_logprobs(self) -> tuple[Candidate, ...]:
        """The tokens of `logprob_token_ids`, in their order; empty where none were asked for."""
        if not self.step.HasField("requested_logprobs"):
            return ()
        recorded = self.step.requested_logprobs
        ids = self._logprob_token_ids
        return self._listed(ids, recorded.logprobs, recorded.sampling_logprobs)

    def _listed(
        self, token_ids: Sequence[int], logprobs: Sequence[float], sampling: Sequence[float]
    ) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(
                token_id,
                logprob,
                sampling[place] if place < len(sampling) else None,
                self._text_of,
            )
            for place, (token_id, logprob) in enumerate(zip(token_ids, logprobs, strict=True))
        )

    @property
    def processors(self) -> tuple[ProcessorEffect, ...]:
        """What each logits processor did, in the order of application."""
        if not self.step.HasField("processors"):
            return ()
        effects = self.step.processors
        return tuple(
            ProcessorEffect(*effect)
            for effect in zip(
                self._processor_names,
                effects.num_kept,
                effects.removed_mass,
                effects.token_logprobs,
                strict=True,
            )
        )

    @property
    def draw(self) -> Draw | None:
        """Only for sampling: the other strategies draw nothing."""
        if not self.step.HasField("draw"):
            return None
        draw = self.step.draw
        return Draw(
            draw.noise,
            draw.runner_up_token_id if draw.HasField("runner_up_token_id") else None,
            draw.margin if draw.HasField("margin") else None,
        )

    @property
    def timing(self) -> Timing | None:
        """When the step happened and what it cost."""
        if not self.step.HasField("timing"):
            return None
        timing = self.step.timing
        return Timing(
            timing.elapsed_ns,
            timing.forward_ns,
            timing.select_ns,
            timing.batch_size,
            timing.context_length,
        )

    @property
    def internals(self) -> Internals | None:
        """How the token formed inside the model; only with `detail="internals"`."""
        if not self.step.HasField("internals"):
            return None
        return Internals(self.step, self._context, self._text_of)

    @property
    def context_token_ids(self) -> tuple[int, ...]:
        """The tokens that it follows, which `internals.sources` gives positions in.

        The prompt's, then its own sequence's; empty where the content policy keeps ids out
        of the journal, and of a prompt's own tokens.
        """
        return self._context.before(self.sequence_index, self.index)

    def text_of(self, token_id: int) -> str:
        """Any token's text, from the vocabulary of the model that made this one."""
        return self._text_of(token_id)

    def text_at(self, position: int) -> str:
        """The text of the token at a position of its context; empty where that is not known."""
        token_id = self._context.token_id(self.sequence_index, position)
        return "" if token_id is None else self._text_of(token_id)


def _exp(logprob: float | None) -> float | None:
    return None if logprob is None else math.exp(logprob)
