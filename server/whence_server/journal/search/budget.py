"""Bounds of the cost of one search: other reads wait for its thread."""

import time
from collections.abc import Callable

MOST_CHARACTERS = 20_000_000
"""Most characters of texts that one search compares."""
MOST_S = 10.0
"""Most seconds that one search takes."""


class Budget:
    """Characters and seconds that a search has left.

    It may be stopped from another thread.

    Args:
        clock: seconds of a clock that is never set back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_s = clock() + MOST_S
        self._num_left = MOST_CHARACTERS

    @property
    def is_spent(self) -> bool:
        """True if the search has to end with what it has found."""
        return self._num_left <= 0 or self._clock() >= self._ends_s

    def take(self, num_characters: int) -> None:
        """Count characters that are compared."""
        self._num_left -= num_characters

    def stop(self) -> None:
        """End the search: nobody waits for it any more."""
        self._num_left = 0
