"""Protocols by which telemetry reads the journal, one for each use."""

from collections.abc import Collection, Sequence
from typing import Protocol

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import JournalError


class UnreadableEntryError(JournalError):
    """Entry whose bytes are not a message of its kind."""

    reason = "UNREADABLE_ENTRY"


class GenerationReader(Protocol):
    """Access to the entries of one generation."""

    async def read(
        self,
        generation_id: str,
        after_offset: int,
        limit: int,
        kinds: Collection[EntryKind] | None,
    ) -> list[Entry]:
        """Read a generation's next entries of these kinds, by ascending offset.

        Raises:
            GenerationNotFoundError: the generation is unknown or was deleted.
        """
        ...


class CommittedLog(Protocol):
    """All committed entries, in one total order."""

    @property
    def committed_position(self) -> int:
        """Position of the newest committed entry; 0 in an empty log."""
        ...

    async def read_committed(self, after_position: int, limit: int) -> list[Entry]:
        """Read the next committed entries of this writer's log, in order."""
        ...

    async def wait_committed(self, after_position: int) -> None:
        """Wait until an entry is committed after the position."""
        ...


class CursorStore(Protocol):
    """Positions that outlive the process, by name."""

    async def read_cursor(self, name: str) -> int:
        """Return the position that a cursor has reached; 0 for a new one."""
        ...

    def advance(self, name: str, position: int) -> None:
        """Move a cursor; durable with the next commit."""
        ...


class FollowedJournal(GenerationReader, CommittedLog, Protocol):
    """Journal of a follower that also reads the first entries of generations."""


class KeptTokens(Protocol):
    """Vocabulary of a tokenizer."""

    @property
    def tokens(self) -> Sequence[bytes]:
        """Bytes of the ids from 0 on; b"" for an id without text."""
        ...


class VocabularyReader(Protocol):
    """Vocabularies that outlive their models, by the tokenizer's digest."""

    async def find(self, tokenizer_digest: str, position: int) -> KeptTokens | None:
        """Return the vocabulary for a generation that began at a position of the journal.

        None if it was not kept before that position, so that the answer never changes.
        """
        ...
