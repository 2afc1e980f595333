"""Typed views of recorded steps; absent values are None."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from whence.context import Context
from whence.internals import Internals
from whence.summary import CONSTRAINT, make_text_names, summarise_step
from whence.v1.step_pb2 import Step


class ProcessorEffect(NamedTuple):
    """Effect of one logits processor on a step's distribution."""

    name: str
    num_kept: int
    """Number of tokens with a probability above 0 afterwards."""
    removed_mass: float
    """Probability mass removed before renormalisation, in [0, 1]."""
    token_logprob: float
    """Logprob of the chosen token afterwards, in nats."""


class Draw(NamedTuple):
    """The random choice behind a sampled token: an exponential race (see step.proto)."""

    noise: float
    """-log(u) of the chosen token."""
    runner_up_token_id: int | None
    """Token that would have been chosen without the chosen one."""
    margin: float | None
    """Nats by which the chosen token could have been less likely and still be chosen."""


class Timing(NamedTuple):
    """Times and sizes of a step."""

    elapsed_ns: int
    """Time from the request's arrival until the token was ready."""
    forward_ns: int
    """Wall time of the whole batch's forward pass."""
    select_ns: int
    """Wall time of choosing the whole batch's tokens."""
    batch_size: int
    """Number of sequences decoded together in this step."""
    context_length: int
    """Number of positions in this sequence's key-value cache."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token with its log probabilities at one step: a most likely one, or one asked for."""

    token_id: int | None
    """Id of the token; None if an upstream did not tell it."""
    logprob: float
    """Logprob under the model's distribution, in nats; `started.observation` says if it is that
    of another one."""
    sampling_logprob: float | None
    """Logprob under the sampling distribution, in nats; -inf if a processor removed the token."""
    _find_text: Callable[[int], str] = field(repr=False, compare=False)
    _told_text: str = field(default="", repr=False)

    @property
    def text(self) -> str:
        """Text of the token, as an upstream told it, or from the model's vocabulary.

        Bytes that are not a character are named: "<0xF0 0x9F>". `Client` fetches the vocabulary
        at the first use; `AsyncClient` needs `await client.vocabulary()` before.

        Raises:
            FailedPreconditionError: the vocabulary of an `AsyncClient` is not loaded.
        """
        if self._told_text or self.token_id is None:
            return self._told_text
        return self._find_text(self.token_id)

    @property
    def probability(self) -> float:
        """Probability under the model's distribution."""
        return math.exp(self.logprob)

    @property
    def sampling_probability(self) -> float | None:
        """Probability under the sampling distribution; None if it was not recorded."""
        return _convert_to_probability(self.sampling_logprob)


@dataclass(frozen=True, slots=True)
class Token:
    """One decoding step: the chosen token, and how it was chosen."""

    step: Step
    """The recorded step, described in step.proto."""
    _processor_names: tuple[str, ...] = field(repr=False, compare=False)
    _find_text: Callable[[int], str] = field(repr=False, compare=False)
    _context: Context = field(repr=False, compare=False)
    _logprob_token_ids: tuple[int, ...] = field(default=(), repr=False, compare=False)
    _strategy: str = field(default="", repr=False, compare=False)

    @property
    def text(self) -> str:
        """Text that became certain with this token; may be "" (see step.proto)."""
        return self.step.text

    @property
    def token_text(self) -> str:
        """Text of the token, as an upstream told it, or from the vocabulary: `Candidate.text`."""
        if self.step.token_text or self.token_id is None:
            return self.step.token_text
        return self._find_text(self.token_id)

    @property
    def reasoning_text(self) -> str:
        """Reasoning that the token adds, where an upstream tells that apart from the text."""
        return self.step.reasoning_text

    @property
    def num_chunk_tokens(self) -> int | None:
        """Number of tokens that an upstream sent in one message with this one; None for one."""
        return self.step.num_chunk_tokens if self.step.HasField("num_chunk_tokens") else None

    @property
    def token_id(self) -> int | None:
        """Id of the token; None if it is not on record, or an upstream did not tell it."""
        return self.step.token_id if self.step.HasField("token_id") else None

    @property
    def index(self) -> int:
        """Position among its sequence's generated tokens, from 0."""
        return self.step.index

    @property
    def sequence_index(self) -> int:
        """Index of the token's sequence among the returned ones, from 0."""
        return self.step.sequence_index

    @property
    def text_bytes(self) -> range:
        """Range of the UTF-8 bytes of its sequence's text that come from this token."""
        return range(self.step.text_begin_byte, self.step.text_end_byte)

    @property
    def logprob(self) -> float | None:
        """Logprob under the model's distribution, in nats; None for a prompt's first token."""
        return self.step.logprob if self.step.HasField("logprob") else None

    @property
    def probability(self) -> float | None:
        """Probability under the model's distribution."""
        return _convert_to_probability(self.logprob)

    @property
    def sampling_logprob(self) -> float | None:
        """Logprob under the sampling distribution, after all processors, in nats."""
        return self.step.sampling_logprob if self.step.HasField("sampling_logprob") else None

    @property
    def sampling_probability(self) -> float | None:
        """Probability under the sampling distribution, after all processors."""
        return _convert_to_probability(self.sampling_logprob)

    @property
    def rank(self) -> int | None:
        """Number of tokens that are more likely under the model's distribution."""
        return self.step.rank if self.step.HasField("rank") else None

    @property
    def entropy(self) -> float | None:
        """Entropy of the model's distribution, in nats."""
        return self.step.entropy if self.step.HasField("entropy") else None

    @property
    def sampling_entropy(self) -> float | None:
        """Entropy of the sampling distribution, in nats."""
        return self.step.sampling_entropy if self.step.HasField("sampling_entropy") else None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Most likely tokens of the step, most likely first; empty if none were recorded."""
        recorded = self.step.candidates
        ids, logprobs = recorded.token_ids, recorded.logprobs
        if not ids:
            return self._make_candidates(
                [None] * len(recorded.texts),
                recorded.text_logprobs,
                recorded.text_sampling_logprobs,
                recorded.texts,
            )
        return self._make_candidates(ids, logprobs, recorded.sampling_logprobs, recorded.texts)

    @property
    def requested_logprobs(self) -> tuple[Candidate, ...]:
        """The tokens of `logprob_token_ids`, in their order; empty where none were asked for."""
        if not self.step.HasField("requested_logprobs"):
            return ()
        recorded = self.step.requested_logprobs
        ids = self._logprob_token_ids
        return self._make_candidates(ids, recorded.logprobs, recorded.sampling_logprobs)

    def _make_candidates(
        self,
        token_ids: Sequence[int | None],
        logprobs: Sequence[float],
        sampling: Sequence[float],
        texts: Sequence[str] = (),
    ) -> tuple[Candidate, ...]:
        return tuple(
            Candidate(
                token_id,
                logprob,
                sampling[place] if place < len(sampling) else None,
                self._find_text,
                texts[place] if place < len(texts) else "",
            )
            for place, (token_id, logprob) in enumerate(zip(token_ids, logprobs, strict=True))
        )

    @property
    def processors(self) -> tuple[ProcessorEffect, ...]:
        """Effects of the logits processors, in the order of application."""
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
    def constraint(self) -> ProcessorEffect | None:
        """Effect of the request's constraint on the model's own distribution; None without one.

        `removed_mass` is the probability that it took away; a `num_kept` of 1 forced the token.
        """
        return next((effect for effect in self.processors if effect.name == CONSTRAINT), None)

    @property
    def draw(self) -> Draw | None:
        """Random draw of the token; None for other strategies than sampling."""
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
        """Times and sizes of the step; None if they were not recorded."""
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
    def summary(self) -> str:
        """One line that says how the token was chosen, as `whence.step.summary` on its span.

        It names tokens by their text, from the model's vocabulary, as `Candidate.text`.
        """
        return summarise_step(
            self.step,
            make_text_names(self._find_text),
            self._strategy,
            constrained=CONSTRAINT in self._processor_names,
        )

    @property
    def internals(self) -> Internals | None:
        """Internals of the token; None without `detail="internals"`."""
        if not self.step.HasField("internals"):
            return None
        return Internals(self.step, self._context, self._find_text)

    @property
    def context_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens before this one, to which `internals.sources` has positions.

        They are the prompt's, then its own sequence's; empty for tokens of the prompt, and if
        the content policy keeps ids out of the journal.
        """
        return self._context.list_before(self.sequence_index, self.index)

    def text_of(self, token_id: int) -> str:
        """Return any token's text, from the vocabulary of this token's model."""
        return self._find_text(token_id)

    def text_at(self, position: int) -> str:
        """Return the text of the token at a position of the context; "" if it is unknown."""
        token_id = self._context.find_token_id(self.sequence_index, position)
        return "" if token_id is None else self._find_text(token_id)


def _convert_to_probability(logprob: float | None) -> float | None:
    return None if logprob is None else math.exp(logprob)
