"""Lag of a follower of the journal: entries and seconds."""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

_MAX_MARKS = 512


class Lag(NamedTuple):
    """Distance between what is committed and what a follower has handled."""

    num_entries: int
    """Committed entries that wait to be handled."""
    oldest_s: float
    """Time for which the oldest of them has been known: at most its age. 0: none waits."""


class LagClock:
    """Remembers when it saw what committed, so that waiting entries have an age.

    The journal gives no time with an entry: an age counts from the first `observe` after the
    commit, or after the start, and so is never more than the truth.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[int, float]] = deque()

    def observe(self, committed: int, position: int) -> None:
        """Note that all up to `committed` is on disk by now, and handled up to `position`."""
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
        """Return the age of the oldest waiting entry, at least; 0 where none waits."""
        return self._clock() - self._marks[0][1] if self._marks else 0.0
