"""Typed views of a step's internals: its sources and layers."""

from collections.abc import Callable
from dataclasses import dataclass, field

from whence.context import Context
from whence.v1.step_pb2 import Step

TextLookup = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Source:
    """A context position that a token attended to directly."""

    position: int
    """Position in the context, from 0: the prompt's tokens, then its own sequence's."""
    share: float
    """Share of the position in everything that the token drew from its context, in [0, 1]."""
    token_id: int | None
    """Id of the token there; None if the content policy keeps ids out of the journal."""
    _find_text: TextLookup = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """Text of the token, from the model's vocabulary, as `Candidate.text`."""
        return "" if self.token_id is None else self._find_text(self.token_id)


@dataclass(frozen=True, slots=True)
class Layer:
    """Prediction decoded after one layer, among the step's candidates."""

    index: int
    """Number of the layer; 0 is nearest to the input."""
    share: float
    """The chosen token's probability among the candidates and itself, in [0, 1]."""
    leader_token_id: int | None
    """Id of the likeliest of them; None if the content policy keeps ids out of the journal."""
    _find_text: TextLookup = field(repr=False, compare=False)

    @property
    def leader_text(self) -> str:
        """Text of the leader, from the model's vocabulary, as `Candidate.text`."""
        return "" if self.leader_token_id is None else self._find_text(self.leader_token_id)


@dataclass(frozen=True, slots=True)
class Internals:
    """Internals of a token: its sources in the context, and its probability at every layer.

    Parts that the model cannot give are empty; `started.unavailable` has the reasons.
    """

    step: Step
    """The recorded step; its `internals` are described in step.proto."""
    _context: Context = field(repr=False, compare=False)
    _find_text: TextLookup = field(repr=False, compare=False)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Positions that the token attended to directly, strongest first, no weak ones or sinks."""
        recorded = self.step.internals
        return tuple(
            Source(
                position,
                share,
                self._context.find_token_id(self.step.sequence_index, position),
                self._find_text,
            )
            for position, share in zip(
                recorded.source_positions, recorded.source_shares, strict=True
            )
        )

    @property
    def self_share(self) -> float | None:
        """Share of the newest position, which predicted the token; None if it is not recorded."""
        recorded = self.step.internals
        return recorded.self_share if recorded.HasField("self_share") else None

    @property
    def sink_share(self) -> float | None:
        """Share of positions that heads attend to when they read nothing; None without them."""
        recorded = self.step.internals
        return recorded.sink_share if recorded.HasField("sink_share") else None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Prediction decoded after every layer, which is not the cause of the choice."""
        recorded = self.step.internals
        return tuple(
            Layer(index, share, find_leader_id(self.step, leader), self._find_text)
            for index, (share, leader) in enumerate(
                zip(recorded.layer_shares, recorded.layer_leaders, strict=True)
            )
        )


def find_leader_id(step: Step, leader: int) -> int | None:
    """Return the token id of an entry of `Internals.layer_leaders`.

    The entry is an index into the step's candidates; an index beyond them is the chosen token.
    """
    candidates = step.candidates.token_ids
    if leader < len(candidates):
        return candidates[leader]
    return step.token_id if candidates and step.HasField("token_id") else None
