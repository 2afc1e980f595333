"""How far a cursor is behind the journal, in entries and in time."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

_MAX_MARKS = 512


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
