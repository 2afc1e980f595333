"""Typed views of what was recorded of a step inside the model: its sources, its layers."""

from collections.abc import Callable
from dataclasses import dataclass, field

from whence.context import Context
from whence.v1.step_pb2 import Step

TextOf = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Source:
    """A context position that a token drew on directly."""

    position: int
    """In the context: the prompt's tokens first, then its own sequence's, from 0."""
    share: float
    """Of all that the token drew from its context, in [0, 1]."""
    token_id: int | None
    """The token there; None where the content policy keeps ids out of the journal."""
    _text_of: TextOf = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The token's own text, from the model's vocabulary; see `Candidate.text`."""
        return "" if self.token_id is None else self._text_of(self.token_id)


@dataclass(frozen=True, slots=True)
class Layer:
    """What could be decoded after one layer, among the step's candidates alone."""

    index: int
    """From 0, the layer nearest to the input."""
    share: float
    """The chosen token's probability among the candidates and itself, in [0, 1]."""
    leader_token_id: int | None
    """The likeliest of them; None where the content policy keeps ids out of the journal."""
    _text_of: TextOf = field(repr=False, compare=False)

    @property
    def leader_text(self) -> str:
        """The leader's own text, from the model's vocabulary; see `Candidate.text`."""
        return "" if self.leader_token_id is None else self._text_of(self.leader_token_id)


@dataclass(frozen=True, slots=True)
class Internals:
    """How a token formed inside the model; its parts are read when they are asked for.

    A part that the model cannot give is empty, and `started.unavailable` says why.
    """

    step: Step
    """The record itself; see `Internals` in step.proto."""
    _context: Context = field(repr=False, compare=False)
    _text_of: TextOf = field(repr=False, compare=False)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The positions that it drew on directly, strongest first; the rest is not listed."""
        recorded = self.step.internals
        return tuple(
            Source(
                position,
                share,
                self._context.token_id(self.step.sequence_index, position),
                self._text_of,
            )
            for position, share in zip(
                recorded.source_positions, recorded.source_shares, strict=True
            )
        )

    @property
    def self_share(self) -> float | None:
        """The share of the newest position, the one that predicted the token."""
        recorded = self.step.internals
        return recorded.self_share if recorded.HasField("self_share") else None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """After every layer, what was decodable there: not what caused the choice."""
        recorded = self.step.internals
        return tuple(
            Layer(index, share, leader_id(self.step, leader), self._text_of)
            for index, (share, leader) in enumerate(
                zip(recorded.layer_shares, recorded.layer_leaders, strict=True)
            )
        )


def leader_id(step: Step, leader: int) -> int | None:
    """The token that an entry of `Internals.layer_leaders` means.

    It is an index into the step's candidates; one beyond them stands for the chosen token.
    """
    candidates = step.candidates.token_ids
    if leader < len(candidates):
        return candidates[leader]
    return step.token_id if candidates and step.HasField("token_id") else None
