"""How long to wait before trying again, and when to give up; no clock but the given one."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from whence.errors import UnavailableError, WhenceError

_RANDOM = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient a stream is with a broken connection.

    Attributes:
        connect_timeout_s: how long a stream that has brought nothing yet is tried again.
        resume_timeout_s: how long one that had begun is tried again, from its last event on.
        first_delay_s: upper bound of the first wait; doubled with every further one.
        longest_delay_s: upper bound of all waits.
    """

    connect_timeout_s: float = 5.0
    resume_timeout_s: float = 30.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0


class Backoff:
    """Exponential back-off with full jitter, begun anew whenever something arrived.

    (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.)

    Args:
        policy: the bounds.
        clock: seconds, monotonic.
        jitter: uniform in [0, 1).
    """

    def __init__(
        self,
        policy: RetryPolicy,
        *,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = _RANDOM.random,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._jitter = jitter
        self._patience_s = policy.connect_timeout_s
        self._broken_since: float | None = None
        self._bound_s = policy.first_delay_s

    def arrived(self) -> None:
        """The stream brought something: it works."""
        self._patience_s = self._policy.resume_timeout_s
        self._broken_since = None
        self._bound_s = self._policy.first_delay_s

    def delay_s(self, error: WhenceError | None) -> float:
        """Seconds to wait now that the stream broke with `error`, or just ended.

        Raises:
            WhenceError: that error, where it cannot pass or patience is at its end.
        """
        if error is None:
            error = UnavailableError("the stream ended before its time", reason="STREAM_BROKEN")
        elif not isinstance(error, UnavailableError):
            raise error
        now = self._clock()
        if self._broken_since is None:
            self._broken_since = now
        left_s = self._broken_since + self._patience_s - now
        if left_s <= 0:
            raise error
        delay_s = max(self._jitter() * self._bound_s, error.retry_delay_s or 0.0)
        self._bound_s = min(self._bound_s * 2, self._policy.longest_delay_s)
        return min(delay_s, left_s)
