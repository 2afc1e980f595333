"""What the journal asks of a database: blocking, called from threads, never from the loop."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal.chain import ChainRow
from whence_server.journal.derive import SpineEntry
from whence_server.journal.listing import PageKey
from whence_server.journal.rows import FinishIndex, GenerationIndex, GenerationRow, ListFilter


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """A generation to be put on record."""

    started_position: int
    secret: bytes
    index: GenerationIndex


class NewEntry(NamedTuple):
    """One of a generation's own entries, to be put on record."""

    position: int
    generation: int
    """The generation's started_position."""
    offset: int
    kind: EntryKind
    payload: bytes
    hash: bytes


class NewOutsideEntry(NamedTuple):
    """An entry outside any generation's offsets; its generation may be long gone, or none."""

    position: int
    generation_id: str
    kind: EntryKind
    payload: bytes
    hash: bytes


@dataclass(slots=True)
class Batch:
    """What one transaction writes: all of it or nothing."""

    generations: list[NewGeneration] = field(default_factory=list)
    entries: list[NewEntry] = field(default_factory=list)
    outside: list[NewOutsideEntry] = field(default_factory=list)
    finished: list[tuple[str, FinishIndex]] = field(default_factory=list)
    deleted: list[tuple[str, int]] = field(default_factory=list)
    """Ids, and each one's DELETED entry's position: the content before it goes."""
    cursors: dict[str, int] = field(default_factory=dict)
    last_position: int = 0
    """Of the entries in it; 0 where there are none."""
    num_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.last_position or self.cursors)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A generation that the writer's last run left open."""

    started_position: int
    secret: bytes
    last_offset: int
    index: GenerationIndex


class Page(NamedTuple):
    """Generations of a list, newest first."""

    rows: list[GenerationRow]
    end: PageKey | None
    """Where the next page goes on; None at the list's end."""


class State(NamedTuple):
    """Where a writer's log stands when it is opened."""

    writer_id: bytes
    position: int
    hash: bytes
    unfinished: list[Unfinished]
    uncalled: list[str]
    """Generations without the record of any call, whose own was cut off."""
    cursors: dict[str, int]


class Store(Protocol):
    """A database that holds one writer's log.

    `write` and `truncate_log` are called from one thread; all others from any.
    """

    @property
    def size_bytes(self) -> int:
        """What it takes on disk."""

    def state(self) -> State:
        """Where the log stands."""

    def write(self, batch: Batch) -> None:
        """Commit a batch, durably as the store was opened for."""

    def truncate_log(self) -> bool:
        """Clear deleted content out of the write-ahead log; False while a reader holds it."""

    def generation(self, generation_id: str) -> GenerationRow | None:
        """One generation's row, or a deleted one's tombstone. A probe of one index."""

    def page(
        self, list_filter: ListFilter, beyond: PageKey | None, limit: int, max_bytes: int
    ) -> Page:
        """Generations newest first, deleted ones left out.

        Stops at either bound (one generation may exceed `max_bytes`), or after a bounded number
        of generations that were looked at and did not match.
        """

    def spine(self, generation_id: str) -> tuple[int, list[SpineEntry]]:
        """Position of a generation's STARTED, and what deletion leaves of its entries.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its row leads to another generation's entries.
        """

    def read(
        self,
        generation_id: str,
        after_offset: int,
        *,
        limit: int,
        max_bytes: int,
        kinds: Collection[EntryKind] | None = None,
    ) -> list[Entry]:
        """A generation's own entries; stops at either bound, gives at least one if there is one.

        Kinds outside its offsets only where `kinds` names them: at offset 0, before all others,
        whatever `after_offset` says.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its rows are not as they were written.
        """

    def last(self, generation_id: str) -> Entry:
        """A generation's newest own entry.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """

    def read_all(self, after_position: int, *, limit: int, max_bytes: int) -> list[Entry]:
        """Entries of all kinds in order of position; bounded as `read` is."""

    def chain(self, after_position: int, limit: int) -> list[ChainRow]:
        """Entries with all that their hashes are made from."""

    def close(self) -> None:
        """Close every connection."""
