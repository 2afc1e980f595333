"""Running calls, which end when the credentials that admitted them are no longer valid."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from whence_server.domain.errors import CallerLimitError, UnauthenticatedError
from whence_server.domain.identity import ANYONE, Identity

_RETRY_AFTER_S = 1.0


def _return_true() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Admission:
    """Admission of one call.

    Attributes:
        identity: the caller.
        is_valid: returns whether the caller would still be admitted to the method.
    """

    identity: Identity
    is_valid: Callable[[], bool] = _return_true


ANYBODY = Admission(ANYONE)
"""Admission to a server without authentication."""


@dataclass(slots=True, eq=False)
class _Session:
    """One running call."""

    admission: Admission
    task: "asyncio.Task[object]"
    is_over: bool = False


class Sessions:
    """The calls that run.

    Args:
        max_per_caller: most calls of one caller that run at one time; 0 for no limit.
    """

    def __init__(self, max_per_caller: int = 0) -> None:
        self._max_per_caller = max_per_caller
        self._running: set[_Session] = set()
        self._num_of_caller: Counter[str] = Counter()

    @contextmanager
    def keep(self, admission: Admission) -> Iterator[None]:
        """Run a call in the current task; its end by `end_invalid` raises an error.

        Raises:
            CallerLimitError: too many calls of its caller run.
            UnauthenticatedError: the call's credentials have become invalid.
        """
        task = asyncio.current_task()
        if task is None or admission is ANYBODY:
            yield
            return
        if not admission.is_valid():
            # Between its headers and its message a call may have lost its credentials.
            raise UnauthenticatedError
        caller = admission.identity.id
        if caller and 0 < self._max_per_caller <= self._num_of_caller[caller]:
            raise CallerLimitError(
                f"{self._num_of_caller[caller]} running calls",
                "--caller-max-calls",
                self._max_per_caller,
                _RETRY_AFTER_S,
            )
        session = _Session(admission, task)
        self._running.add(session)
        self._num_of_caller[caller] += 1
        try:
            yield
        except asyncio.CancelledError:
            if not session.is_over:
                raise
            task.uncancel()
            raise UnauthenticatedError from None
        finally:
            self._running.discard(session)
            self._num_of_caller[caller] -= 1
            if not self._num_of_caller[caller]:
                del self._num_of_caller[caller]

    def end_invalid(self) -> int:
        """End the calls whose credentials are no longer valid; return their number."""
        num_ended = 0
        for session in list(self._running):
            if not session.is_over and not session.admission.is_valid():
                session.is_over = True
                session.task.cancel()
                num_ended += 1
        return num_ended
