"""Protocol of a database that retention can work on, besides the Store's own methods."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from whence_server.domain.retention import LabelPattern
from whence_server.journal.chain import Origin
from whence_server.journal.listing import PageKey


class Candidate(NamedTuple):
    """A generation that retention may delete."""

    generation_id: str
    key: PageKey
    """Its place in the order of ages."""
    started_position: int
    labels: dict[str, str] | None
    """None if they cannot be read."""
    num_entries: int
    last_position: int
    """Position of its newest entry, the record of a call included."""


@dataclass(frozen=True, slots=True)
class RemovalLimits:
    """Limits of the removal of the oldest entries whose content is gone."""

    before_ns: int
    """Unix time; records of calls and of deletions are removed if they are older."""
    audit_before_ns: int
    """Unix time; records of the audit are removed if they are older."""
    read_position: int
    """Position up to which every export has read."""
    unread_ns: int
    """Time for which records after `read_position` are kept longer, in nanoseconds."""
    max_entries: int


@runtime_checkable
class RetentionStore(Protocol):
    """Database that retention can work on; its methods are called from threads."""

    def read_candidates(
        self, pattern: LabelPattern | None, before_ns: int, beyond: PageKey | None, limit: int
    ) -> list[Candidate]:
        """Read generations that are not deleted, oldest first.

        Args:
            pattern: the label that they have; None for all.
            before_ns: Unix time before which they began.
            beyond: key after which the page begins; None for the oldest.
            limit: maximum number of them.
        """

    def agrees_with_entries(self, candidate: Candidate) -> bool:
        """Return whether start time, id and labels are those of the generation's STARTED entry."""

    def find_newest_start(self) -> int | None:
        """Return the newest start time of a generation, in Unix nanoseconds; None without one.

        In a shared database, of a generation in any log.
        """

    def count_matching(self, patterns: tuple[LabelPattern, ...]) -> int:
        """Return the number of generations that match a pattern."""

    def measure_use(self) -> int:
        """Return the size of the pages in use, in bytes."""

    def read_origin(self) -> Origin | None:
        """Return the place at which the log begins; None if no entry was removed."""

    def find_removable(self, limits: RemovalLimits) -> Origin | None:
        """Return the last of the oldest entries that can be removed; None if there is none.

        All entries up to it belong to deleted generations, or are records of calls, deletions and
        the audit that are older than the limits.
        """
