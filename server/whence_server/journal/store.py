"""Interface of the journal's database; its blocking methods are called from threads."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal.chain import ChainRow, Origin
from whence_server.journal.derive import EntryDigest
from whence_server.journal.listing import PageKey
from whence_server.journal.rows import FinishIndex, GenerationIndex, GenerationRow, ListFilter

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """A generation to store."""

    started_position: int
    secret: bytes
    index: GenerationIndex


class NewEntry(NamedTuple):
    """An entry of a generation to store."""

    position: int
    generation: int
    """Position of the generation's STARTED entry."""
    offset: int
    """0 for OCCURRENCE."""
    kind: EntryKind
    payload: bytes
    hash: bytes


class NewOutsideEntry(NamedTuple):
    """An entry outside any generation's offsets; its generation may be deleted or unknown."""

    position: int
    generation_id: str
    kind: EntryKind
    payload: bytes
    hash: bytes


@dataclass(slots=True)
class Batch:
    """Content of one transaction."""

    generations: list[NewGeneration] = field(default_factory=list)
    entries: list[NewEntry] = field(default_factory=list)
    outside: list[NewOutsideEntry] = field(default_factory=list)
    finished: list[tuple[str, FinishIndex]] = field(default_factory=list)
    deleted: list[tuple[str, int]] = field(default_factory=list)
    """Ids with the position of their DELETED entry, before which content is destroyed."""
    cursors: dict[str, int] = field(default_factory=dict)
    removed: Origin | None = None
    """The last of the oldest entries to remove; their content was destroyed before."""
    last_position: int = 0
    """Position of the batch's last entry; 0 if it has none."""
    num_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.last_position or self.cursors)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A generation that the writer's last run left unfinished."""

    started_position: int
    secret: bytes
    last_offset: int
    index: GenerationIndex


class Page(NamedTuple):
    """One page of a list of generations, newest first."""

    rows: list[GenerationRow]
    end: PageKey | None
    """Key after which the next page begins; None at the list's end."""


class Owned(NamedTuple):
    """Record of one caller: its size, and where to begin to delete."""

    num_bytes: int
    """Bytes of the entries of its generations."""
    oldest: tuple[str, ...]
    """Ids of its oldest generations."""


class LogEnd(NamedTuple):
    """A log and the position of its newest committed entry."""

    writer: int
    log_id: bytes
    """The log's UUID, 16 bytes."""
    position: int


class State(NamedTuple):
    """State of a writer's log when it is opened."""

    writer_id: bytes
    position: int
    hash: bytes
    unfinished: list[Unfinished]
    uncalled: list[str]
    """Ids of generations without a CALL entry, because the server ended first."""
    cursors: dict[str, int]


class Store(Protocol):
    """A database with one writer's log.

    `write`, `truncate_log` and `change_tree` are called from one thread, all others from any.
    """

    @property
    def size_bytes(self) -> int:
        """Size on disk."""

    def load_state(self) -> State:
        """Read the state of the log."""

    def write(self, batch: Batch) -> None:
        """Commit a batch with the durability of the store."""

    def truncate_log(self) -> bool:
        """Remove deleted content from the write-ahead log; return False if a reader holds it."""

    def change_tree(self, change: Callable[[Any], T]) -> T:
        """Call a function with a connection, in one transaction that is on disk when it returns.

        The function changes the tables of `tree_tables`, `search.passages` or `shared_keys` alone.
        Called from the writer's thread, unless several servers share the database.

        Raises:
            JournalUnwritableError: the disk is full or failing, or the database is away or busy;
                nothing is changed.
        """

    def take_id(self, generation_id: str) -> None:
        """Take an id for a new generation.

        Raises:
            GenerationExistsError: it was used before, or another server has taken it.
        """

    def find_generation(self, generation_id: str) -> GenerationRow | None:
        """Return a generation's row, deleted or not, with one index look-up; None if unknown."""

    def has_sealed(self) -> bool:
        """Return whether the newest generation of a log of the database is encrypted.

        Once encryption is turned on, every later generation is encrypted: later by position,
        because a clock may have been wrong.
        """

    def read_journal_id(self) -> bytes:
        """Return the id of the database's first log, by which its keys name the journal."""

    def read_page(
        self, list_filter: ListFilter, beyond: PageKey | None, limit: int, max_bytes: int
    ) -> Page:
        """Return a page of generations, newest first, without deleted ones.

        The page ends at either bound (one generation may exceed `max_bytes`), or after a bounded
        number of examined generations.
        """

    def find_ended(self, generation_id: str) -> tuple[int, bytes]:
        """Return the position of a generation's STARTED entry, and the secret of its entries.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            GenerationInOtherLogError: it is not in this log.
            RecordDamagedError: its row points to another generation's entries.
        """

    def read_entry_digests(self, generation_id: str) -> tuple[int, list[EntryDigest]]:
        """Return the position of a generation's STARTED entry, and its entries' digests.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its row points to another generation's entries.
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
        """Read a generation's own entries up to either bound; at least one if there is one.

        Kinds outside its offsets are returned only if `kinds` names them: at offset 0, before all
        others, for every `after_offset`.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its rows are damaged.
        """

    def read_last(self, generation_id: str) -> Entry:
        """Return a generation's newest own entry.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """

    def read_all(self, after_position: int, *, limit: int, max_bytes: int) -> list[Entry]:
        """Read entries of all kinds by position, up to either bound."""

    def list_logs(self) -> list[LogEnd]:
        """Return every log of the database with the position of its newest committed entry."""

    def read_audit(self, writer: int, before_position: int, limit: int) -> list[Entry]:
        """Read AUDIT entries of a writer's log before a position, the newest first."""

    def read_finished(self, after_position: int, up_to_position: int, limit: int) -> list[Entry]:
        """Read FINISHED entries of the log by position, after one and up to another.

        Their number and size are bounded; at least one is returned if there is one.
        """

    def read_tree(self, read: Callable[[Any], T]) -> T:
        """Call a function with a connection whose statements see one state of the database."""

    def measure_owner(self, owner: str) -> Owned:
        """Count the bytes of the entries of a caller's generations."""

    def read_origin(self) -> Origin | None:
        """Return the place at which the log begins; None if no entry was removed."""

    def read_chain(self, after_position: int, limit: int) -> list[ChainRow]:
        """Read entries with everything that their hashes cover."""

    def close(self) -> None:
        """Close every connection."""
