"""Branches: generations that repeat the beginning of another one."""

from dataclasses import dataclass

from whence_server.domain.chat import ChatRecord


@dataclass(frozen=True, slots=True)
class ForkOrigin:
    """Origin of a branch, as its request and its parent's record give it."""

    parent_generation_id: str
    sequence_index: int
    """The parent's sequence that is repeated."""
    step: int
    """Number of its tokens that are repeated."""
    replaced_token_id: int | None
    """The parent's token at `step`, if others are given in its place."""
    parent_trace_id: str
    parent_span_id: str
    parent_decoding: bytes
    """The parent's effective settings: a serialised whence.v1.Decoding."""
    parent_configured: bytes
    """The parent's settings of the generation config: a serialised whence.v1.ConfiguredDecoding."""
    keeps_lists: bool
    """False if the parent's content policy kept lists of token ids out of its record."""
    changes_model: bool
    """True if other files of the model are served than the parent had, with its weights."""
    parent_prompt: str
    """Text of the parent's prompt; "" if it is not on record."""
    parent_prompt_token_ids: tuple[int, ...]
    parent_chat: ChatRecord | None
    """The parent's conversation; None if it has none, or if it is not on record."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Difference of a branch from its parent, as it is recorded."""

    origin: ForkOrigin
    num_forced_steps: int
    """Number of steps whose tokens are given."""
    first_draw_sequence: int
    """Index of the first sequence in the draws."""
    changes_prompt: bool
    changed_settings: tuple[str, ...]
    """Paths of the settings that differ."""
    parent_decoding: bytes
    """The parent's values of these alone: a serialised whence.v1.Decoding."""
