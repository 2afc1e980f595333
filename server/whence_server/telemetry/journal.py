"""The journal as its followers read it, and how far behind a follower is: entries, seconds."""

import time
from collections import deque
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

from whence_server.domain.entries import Entry, EntryKind

_MAX_MARKS = 512


class FollowedJournal(Protocol):
    """The journal, as whoever follows what is committed reads it."""

    @property
    def committed_position(self) -> int:
        """The newest committed entry's position; 0 in an empty log."""
        ...

    async def read_committed(self, after_position: int, limit: int) -> list[Entry]:
        """Reads the next committed entries of this writer's log, in order."""
        ...

    async def wait_committed(self, after_position: int) -> None:
        """Returns once something is committed beyond the position."""
        ...

    async def read(
        self,
        generation_id: str,
        after_offset: int,
        limit: int,
        kinds: Collection[EntryKind] | None,
    ) -> list[Entry]:
        """Reads a generation's next entries of these kinds, by ascending offset.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """
        ...


class SpanJournal(FollowedJournal, Protocol):
    """The journal, as the exporter reads it: with a cursor that outlives the process."""

    async def cursor(self, name: str) -> int:
        """Gives the position that a cursor has reached; 0 for a new one."""
        ...

    def advance(self, name: str, position: int) -> None:
        """Moves a cursor; durable with the next commit."""
        ...


class Behind(NamedTuple):
    """How far somebody who follows the journal is behind."""

    num_entries: int
    """Committed entries that are yet to be dealt with."""
    oldest_s: float
    """For how long the oldest of them has been known: at most its age. 0: none waits."""


class Lag:
    """Remembers when it saw what committed, so that what waits has an age.

    Entries carry no time of their own here: an age counts from the first `observe` after the
    commit, or after the start, and so is never more than the truth.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[int, float]] = deque()

    def observe(self, committed: int, position: int) -> None:
        """Notes that all up to `committed` is on disk by now, and dealt with up to `position`."""
        marks = self._marks
        if committed > (marks[-1][0] if marks else position):
            if len(marks) == _MAX_MARKS:
                # Half of them go. Those that stay are the later ones of each pair: an age read
                # from them is too small rather than too large.
                self._marks = marks = deque(list(marks)[1::2])
            marks.append((committed, self._clock()))
        while marks and marks[0][0] <= position:
            marks.popleft()

    def oldest_s(self) -> float:
        """The age of the oldest entry that waits, at least; 0 where none does."""
        return self._clock() - self._marks[0][1] if self._marks else 0.0
