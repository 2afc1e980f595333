"""Logs that could not be taken over: they are left alone for a while."""

import time
from collections.abc import Callable

_LONGEST_PAUSE_S = 600.0


class RefusedLogs:
    """Writers whose logs could not be read, with the times of the next attempts.

    The pause after an attempt doubles each time: a damaged log must not keep a server from the
    logs after it, and may be mended.

    Args:
        first_pause_s: pause after the first attempt.
        clock: monotonic seconds.
    """

    def __init__(self, first_pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._first_pause_s = first_pause_s
        self._clock = clock
        self._pauses: dict[int, tuple[float, float]] = {}

    def add(self, writer: int) -> float:
        """Note that a log could not be read; return the seconds until it is tried again."""
        last_s, _ = self._pauses.get(writer, (0.0, 0.0))
        pause_s = min(2 * last_s or self._first_pause_s, _LONGEST_PAUSE_S)
        self._pauses[writer] = pause_s, self._clock() + pause_s
        return pause_s

    def forget(self, writer: int) -> None:
        """Note that a log could be read."""
        self._pauses.pop(writer, None)

    def list_paused(self) -> list[int]:
        """Return the writers whose logs are not tried at present."""
        now = self._clock()
        return [writer for writer, (_, until_s) in self._pauses.items() if now < until_s]
