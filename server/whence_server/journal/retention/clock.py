"""Time by which retention judges ages: a clock that jumps does not delete what is young."""

import logging
import time
from bisect import bisect_right
from collections.abc import Callable

_log = logging.getLogger(__name__)

JUMP_S = 3_600
"""Difference from the expected time, in seconds, that counts as a jump; a jump forward must last
for this time before ages are judged by it."""
_JUMP_NS = JUMP_S * 1_000_000_000
_MINUTE_NS, _HOUR_NS = 60 * 1_000_000_000, 3_600 * 1_000_000_000
_MINUTES_KEPT = 180


class RetentionClock:
    """The system's clock, checked against elapsed time.

    A step of the system's clock forward by more than an hour is followed after an hour, if the
    clock does not step back before. Until then, time goes on from where it was. A step back is
    followed at once: it only makes generations younger. At the start, time goes on from the newest
    generation on record, so that a machine that boots in the wrong year deletes nothing for an
    hour.
    """

    def __init__(
        self,
        newest_ns: int | None,
        wall: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Begin with the start time of the newest generation on record; None if there is none."""
        self._wall, self._monotonic = wall, monotonic
        now = monotonic()
        self._offset = (wall() if newest_ns is None else newest_ns) - now
        """Trusted difference between the two clocks."""
        self._seen, self._seen_since = self._offset, now
        """Difference that may become the trusted one, and the time since which it lasts."""

    def read(self) -> int:
        """Return the present time in Unix nanoseconds, without a jump that is not proven yet."""
        now = self._monotonic()
        offset = self._wall() - now
        if offset - self._offset <= _JUMP_NS:
            self._offset = self._seen = offset
        elif abs(offset - self._seen) > _JUMP_NS:
            self._seen, self._seen_since = offset, now
            _log.warning(
                "the clock is %.1f hours ahead of the time that retention expects; ages count by "
                "it in %d minutes, if it stays so",
                (offset - self._offset) / _HOUR_NS,
                JUMP_S // 60,
            )
        elif now - self._seen_since >= _JUMP_NS:
            self._offset = self._seen = offset
        return self._offset + now


class PositionAges:
    """Positions of the journal, with the elapsed time since they were the newest.

    What this process has recorded is at least as old as the time since then, whatever the clock
    said. Entries of earlier processes have no such bound.
    """

    def __init__(self, position: int, monotonic: Callable[[], int] = time.monotonic_ns) -> None:
        """Begin with the newest position of an earlier process."""
        self._first = position
        self._monotonic = monotonic
        self._times: list[int] = []
        self._positions: list[int] = []

    def note(self, position: int) -> None:
        """Note the newest position: at most once a minute, once an hour for earlier hours."""
        now = self._monotonic()
        if self._times and now - self._times[-1] < _MINUTE_NS:
            return
        self._times.append(now)
        self._positions.append(position)
        place = len(self._times) - _MINUTES_KEPT
        if place > 0 and self._times[place] - self._times[place - 1] < _HOUR_NS:
            del self._times[place], self._positions[place]

    def find_position(self, age_ns: int) -> int:
        """Return the newest position up to which all entries are older than an age.

        Entries of earlier processes count as older: their own times say how old they are.
        """
        place = bisect_right(self._times, self._monotonic() - age_ns)
        return self._positions[place - 1] if place else self._first
