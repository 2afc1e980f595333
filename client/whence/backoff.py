"""Delays between retries, and the end of retrying; uses only the given clock."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from whence.errors import Code, Origin, UnavailableError, WhenceError
from whence.recovery import Recovery, choose_recovery

_RANDOM = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of retrying a stream over a broken connection.

    Attributes:
        connect_timeout_s: seconds to retry a stream before its first event.
        resume_timeout_s: seconds to retry a stream after its last event.
        first_delay_s: upper bound of the first delay, in seconds; doubled with every retry.
        longest_delay_s: upper bound of all delays, in seconds.
    """

    connect_timeout_s: float = 5.0
    resume_timeout_s: float = 30.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0


class Backoff:
    """Exponential back-off with full jitter, which restarts after every event.

    (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.)

    Args:
        policy: bounds of the delays.
        clock: returns monotonic seconds.
        jitter: returns uniform random numbers in [0, 1).
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
        self._begun = False
        self._broken_since: float | None = None
        self._bound_s = policy.first_delay_s

    def restart(self) -> None:
        """Restart the back-off, because an event arrived."""
        self._begun = True
        self._broken_since = None
        self._bound_s = self._policy.first_delay_s

    def choose_delay_s(self, error: WhenceError | None) -> float:
        """Return the seconds to wait after the stream broke with `error`, or ended without one.

        Raises:
            WhenceError: the given error, if the stream cannot be resumed after it, or if the time
                for retries is over.
            UnavailableError: the time for retries is over, and the connection had broken.
        """
        if error is None:
            error = UnavailableError(
                "the stream ended before the generation finished",
                origin=Origin.PATH,
                reason="STREAM_BROKEN",
            )
        if choose_recovery(error, begun=self._begun) is Recovery.END:
            raise error
        now = self._clock()
        if self._broken_since is None:
            self._broken_since = now
        left_s = self._broken_since + self._patience_s - now
        if left_s <= 0:
            raise _make_last_error(error, self._patience_s)
        delay_s = max(self._jitter() * self._bound_s, error.retry_delay_s or 0.0)
        self._bound_s = min(self._bound_s * 2, self._policy.longest_delay_s)
        return min(delay_s, left_s)

    @property
    def _patience_s(self) -> float:
        policy = self._policy
        return policy.resume_timeout_s if self._begun else policy.connect_timeout_s


def _make_last_error(error: WhenceError, patience_s: float) -> WhenceError:
    """Return the error of a stream that was retried for long enough.

    The code of a broken connection has no meaning: a program would take CANCELLED and
    DEADLINE_EXCEEDED for its own.
    """
    if error.origin is not Origin.PATH or error.code is Code.UNAVAILABLE:
        return error
    last = UnavailableError(
        f"the connection broke, and no call succeeded within {patience_s:g} s; the last one ended "
        f"with {error.code.name}: {error.message}",
        origin=Origin.PATH,
        reason="STREAM_BROKEN",
    )
    last.__cause__ = error
    return last
