"""Logic of waiting until the server has loaded its model, without I/O."""

import time
from collections.abc import Callable

from whence.backoff import Backoff, RetryPolicy
from whence.deadline import Deadline
from whence.errors import FailedPreconditionError, Origin, UnavailableError, WhenceError
from whence.recovery import Recovery, choose_recovery
from whence.v1.model_pb2 import Model, ModelState

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 1.0
_LONGEST_CALL_S = 5.0
_LOADING_REASON = "MODEL_LOADING"


class ReadyWait:
    """Waiting for a model: it is asked for until it is ready, or the time is over.

    Args:
        timeout_s: seconds to wait; None for no limit.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, timeout_s: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._deadline = None if timeout_s is None else clock() + timeout_s
        self._delay_s = _FIRST_DELAY_S

    @property
    def call_timeout_s(self) -> float:
        """Timeout of the next call, in seconds; above 0, so that there is always one answer."""
        return max(min(_LONGEST_CALL_S, self._measure_left_s()), _FIRST_DELAY_S)

    def is_ready(self, model: Model) -> bool:
        """Return whether the model is ready.

        Raises:
            FailedPreconditionError: the model could not be loaded.
        """
        if model.state == ModelState.MODEL_STATE_FAILED:
            raise FailedPreconditionError(
                f"the model could not be loaded: {model.failure}",
                origin=Origin.SERVER,
                reason="MODEL_FAILED",
            )
        return model.state == ModelState.MODEL_STATE_READY

    def choose_delay_s(self, error: WhenceError | None) -> float:
        """Return the seconds until the next call, after an error or an answer "not ready" (None).

        Raises:
            WhenceError: the error, if the next call would end with it too.
            UnavailableError: the time is over.
        """
        if error is None:
            error = UnavailableError(
                "the model is still loading", origin=Origin.SERVER, reason=_LOADING_REASON
            )
        if choose_recovery(error, begun=False) is Recovery.END:
            raise error
        left_s = self._measure_left_s()
        if left_s <= 0:
            if isinstance(error, UnavailableError):
                raise error
            raise UnavailableError(error.message, origin=error.origin, reason=error.reason)
        delay_s, self._delay_s = self._delay_s, min(self._delay_s * 2, _LONGEST_DELAY_S)
        return min(delay_s, left_s)

    def _measure_left_s(self) -> float:
        return float("inf") if self._deadline is None else self._deadline - self._clock()


class LoadingWait:
    """Wait of one call while the model that it needs is loading: the call is made again.

    Args:
        policy: bounds of the wait; it lasts `connect_timeout_s` at most.
        timeout_s: timeout of the call over all of its attempts, in seconds; None for no timeout.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        timeout_s: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backoff = Backoff(policy, clock=clock)
        self._deadline = Deadline(timeout_s, clock=clock)

    @property
    def timeout_s(self) -> float | None:
        """Timeout of the next attempt, in seconds."""
        return self._deadline.left_s

    def choose_delay_s(self, error: WhenceError) -> float:
        """Return the seconds until the next attempt, after one ended with an error.

        Raises:
            WhenceError: the error, if it says anything else than that the model is loading, or if
                the time is over.
        """
        if error.reason != _LOADING_REASON:
            raise error
        delay_s = self._backoff.choose_delay_s(error)
        left_s = self._deadline.left_s
        if left_s is not None and delay_s >= left_s:
            raise error
        return delay_s
