"""Lag of a follower of the journal: entries and seconds."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

_MAX_MARKS = 512


class Lag(NamedTuple):
    """Distance of a follower from the newest committed entry."""

    num_entries: int
    """Committed entries that are not handled yet."""
    oldest_s: float
    """Seconds since the oldest unhandled entry was first seen; 0 if there is none."""


class LagClock:
    """Times at which committed positions were first seen, from which unhandled entries get an age.

    The journal stores no commit time with an entry. An age counts from the first `observe` after
    the commit, or after the start, and is therefore a lower bound.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[int, float]] = deque()

    def observe(self, committed: int, position: int) -> None:
        """Note that entries up to `committed` are on disk, and those up to `position` handled."""
        marks = self._marks
        if committed > (marks[-1][0] if marks else position):
            if len(marks) == _MAX_MARKS:
                # Of each pair the later mark stays: an age may be too small, never too large.
                self._marks = marks = deque(list(marks)[1::2])
            marks.append((committed, self._clock()))
        while marks and marks[0][0] <= position:
            marks.popleft()

    def measure_oldest_s(self) -> float:
        """Return a lower bound of the oldest unhandled entry's age; 0 if there is none."""
        return self._clock() - self._marks[0][1] if self._marks else 0.0
