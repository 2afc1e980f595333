"""Attempts to connect to a database whose network swallows packets."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from whence_server.domain.errors import JournalUnreachableError

T = TypeVar("T")

_SLOW_S = 0.5
_PAUSE_S = 1.0


class Reachability:
    """Refuses attempts for a second after one that took long in vain.

    An attempt without an answer holds its thread until the network's timeout. The reads that wait
    for the thread then fail at once, instead of one timeout after the other. An attempt that is
    refused at once holds nobody up, and may be repeated at any time.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._away_until_s: float | None = None

    def connect(self, connect: Callable[[], T]) -> T:
        """Return what a function returns that connects; any thread may call.

        Raises:
            JournalUnreachableError: it does not succeed, or did not a moment ago.
        """
        started_s = self._clock()
        with self._lock:
            if self._away_until_s is not None and started_s < self._away_until_s:
                raise JournalUnreachableError("PostgreSQL did not answer a moment ago")
        try:
            connection = connect()
        except JournalUnreachableError:
            ended_s = self._clock()
            if ended_s - started_s >= _SLOW_S:
                with self._lock:
                    self._away_until_s = ended_s + _PAUSE_S
            raise
        with self._lock:
            self._away_until_s = None
        return connection
