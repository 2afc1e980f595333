"""The journal's own vocabulary: what it is told beside the bytes, and what it answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from whence_server.domain.decoding import FinishReason

PREVIEW_CHARACTERS = 200
"""Of a prompt, and of a text, that are kept beside the entries for lists."""


class Durability(Enum):
    """When an entry becomes visible to those who follow its generation."""

    GROUP = "group"
    """At once; on disk within the commit interval. A crash may lose the last of it."""
    STRICT = "strict"
    """Once it is on disk, synced: what a reader has seen is never lost."""


@dataclass(frozen=True, slots=True)
class GenerationIndex:
    """A generation's searchable columns, known at its start; all can be had from STARTED."""

    generation_id: str
    trace_id: str
    model: str
    start_time_ns: int
    """Unix time of the request's arrival."""
    request_digest: str
    labels: Mapping[str, str]
    prompt_preview: str
    """The first 200 characters; "" where the content policy keeps none."""
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class FinishIndex:
    """What FINISHED adds to them."""

    finish_reason: FinishReason
    num_generated_tokens: int
    text_preview: str
    """The first 200 characters of the first sequence."""


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """A generation at a glance. Of a deleted one, only its id is left."""

    index: GenerationIndex
    finish: FinishIndex | None = None
    """None while it runs."""
    deleted: bool = False
    damage: str = ""
    """What is wrong with the row, in words; the rest then comes from the entries, or is blank."""
    foreign: bool = False
    """Whether the row leads to another generation's entries: nothing may be read through it."""

    @property
    def generation_id(self) -> str:
        """The generation's id."""
        return self.index.generation_id

    @property
    def request_digest(self) -> str:
        """What makes two requests equal; "" of a deleted generation."""
        return self.index.request_digest


@dataclass(frozen=True, slots=True)
class ListFilter:
    """Which generations to list; unset fields match anything."""

    start_after_ns: int | None = None
    """Unix time, exclusive."""
    start_before_ns: int | None = None
    """Unix time, exclusive."""
    model: str = ""
    trace_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """All of them have to be there, with these values."""
