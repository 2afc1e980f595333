"""Deadline of a stream, over all of its calls."""

import time
from collections.abc import Callable

from whence.errors import DeadlineExceededError, Origin, WhenceError


class Deadline:
    """Time at which a caller stops to wait; uses only the given clock.

    Args:
        timeout_s: seconds from now on; None for no deadline.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, timeout_s: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._time = None if timeout_s is None else clock() + timeout_s

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline, at least 0; None if there is no deadline."""
        return None if self._time is None else max(0.0, self._time - self._clock())

    def check(self, error: WhenceError | None) -> None:
        """Raise a call's DEADLINE_EXCEEDED if this deadline has passed; a proxy may send it too.

        Raises:
            DeadlineExceededError: the given error.
        """
        if isinstance(error, DeadlineExceededError) and self.left_s == 0:
            error.origin = Origin.CLIENT
            raise error

    def limit(self, delay_s: float) -> float:
        """Return a delay that ends no later than the deadline."""
        left_s = self.left_s
        return delay_s if left_s is None else min(delay_s, left_s)
