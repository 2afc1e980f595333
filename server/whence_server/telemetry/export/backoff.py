"""Delays between attempts."""

import random
from collections.abc import Callable


class Backoff:
    """Exponential delays with jitter, for ever.

    Args:
        initial_s: the first delay's upper end.
        maximum_s: every delay's upper end.
        jitter: gives a number in [0, 1).
    """

    def __init__(
        self,
        initial_s: float = 0.1,
        maximum_s: float = 30.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._initial_s = initial_s
        self._maximum_s = maximum_s
        self._jitter = jitter
        self._bound_s = initial_s

    def next_s(self, at_least_s: float = 0.0) -> float:
        """Return the next delay: half of the current bound, and up to half more by chance."""
        delay = self._bound_s * (1 + self._jitter()) / 2
        self._bound_s = min(2 * self._bound_s, self._maximum_s)
        return max(delay, at_least_s)

    def longest_s(self) -> float:
        """Go to the longest delay at once."""
        self._bound_s = self._maximum_s
        return self.next_s()

    def reset(self) -> None:
        """Start over: the destination has answered."""
        self._bound_s = self._initial_s
