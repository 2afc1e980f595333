"""Delays between attempts of an export."""

import random
from collections.abc import Callable

INITIAL_S = 0.1
MAXIMUM_S = 30.0


class Backoff:
    """Exponential backoff with jitter, without a last attempt.

    Args:
        initial_s: upper bound of the first delay in seconds.
        maximum_s: upper bound of every delay in seconds.
        jitter: returns a random number in [0, 1).
    """

    def __init__(
        self,
        initial_s: float = INITIAL_S,
        maximum_s: float = MAXIMUM_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._initial_s = initial_s
        self._maximum_s = maximum_s
        self._jitter = jitter
        self._bound_s = initial_s

    def choose_next_s(self, at_least_s: float = 0.0) -> float:
        """Return the next delay, between half of the current bound and the bound, at random."""
        delay = self._bound_s * (1 + self._jitter()) / 2
        self._bound_s = min(2 * self._bound_s, self._maximum_s)
        return max(delay, at_least_s)

    def choose_longest_s(self) -> float:
        """Raise the bound to the maximum, and return the next delay."""
        self._bound_s = self._maximum_s
        return self.choose_next_s()

    def reset(self) -> None:
        """Start over with the initial bound."""
        self._bound_s = self._initial_s
