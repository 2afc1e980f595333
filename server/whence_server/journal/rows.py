"""Types of the journal's interface: durability, columns, rows and filters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from whence_server.domain.decoding import FinishReason

PREVIEW_CHARACTERS = 200
"""Length of the previews of prompts and texts in lists, in characters."""


class Durability(Enum):
    """Time at which an entry becomes visible to readers that follow its generation."""

    GROUP = "group"
    """Immediately; on disk within the commit interval. A crash may lose the newest entries."""
    STRICT = "strict"
    """After the entry is synced to disk: an entry that was read is never lost."""


@dataclass(frozen=True, slots=True)
class GenerationIndex:
    """A generation's searchable columns; all follow from its STARTED entry."""

    generation_id: str
    trace_id: str
    model: str
    start_time_ns: int
    """Unix time of the request's arrival."""
    request_digest: str
    labels: Mapping[str, str]
    prompt_preview: str
    """First 200 characters of the prompt; "" if the content policy keeps none."""
    num_prompt_tokens: int
    owner: str = ""
    """Id of the caller that started it; "" without authentication."""
    parent: str = ""
    """Id of the generation that it is a branch of; "" for none."""


@dataclass(frozen=True, slots=True)
class FinishIndex:
    """A generation's columns that follow from its FINISHED entry."""

    finish_reason: FinishReason
    num_generated_tokens: int
    text_preview: str
    """First 200 characters of the first sequence."""


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """A generation's row; a deleted generation has only its id."""

    index: GenerationIndex
    finish: FinishIndex | None = None
    """None while the generation is running."""
    deleted: bool = False
    damage: str = ""
    """Description of the row's damage; the other fields then follow from entries or are empty."""
    foreign: bool = False
    """True if the row points to another generation's entries, which must not be read."""
    key_id: bytes = b""
    """Id of the key that the content is encrypted with; b"" if it is stored in clear."""

    @property
    def generation_id(self) -> str:
        """The generation's id."""
        return self.index.generation_id

    @property
    def request_digest(self) -> str:
        """Digest that is the same for equal requests; "" for a deleted generation."""
        return self.index.request_digest


@dataclass(frozen=True, slots=True)
class ListFilter:
    """Filter of a list of generations; unset fields match everything."""

    start_after_ns: int | None = None
    """Unix time, exclusive."""
    start_before_ns: int | None = None
    """Unix time, exclusive."""
    model: str = ""
    trace_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that a generation must have, with these values."""
    owner: str | None = None
    """Id of the caller that started it, not empty; None for all."""
    parent: str = ""
    """Id of the generation whose branches match; "" for all generations."""

    def matches(self, index: GenerationIndex) -> bool:
        """Return whether a generation is one of those that are asked for."""
        return (
            (self.start_after_ns is None or index.start_time_ns > self.start_after_ns)
            and (self.start_before_ns is None or index.start_time_ns < self.start_before_ns)
            and self.model in ("", index.model)
            and self.trace_id in ("", index.trace_id)
            and self.owner in {None, index.owner}
            and self.parent in ("", index.parent)
            and self.labels.items() <= index.labels.items()
        )
