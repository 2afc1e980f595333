"""Failed attempts of callers: counted by cause, and logged without the secret."""

import logging
import time
from collections.abc import Callable, Mapping
from enum import StrEnum

_log = logging.getLogger(__name__)

_LINES_A_MINUTE = 30


class Cause(StrEnum):
    """Cause for which a caller was refused."""

    MISSING = "missing"
    """No token, and no certificate that is known."""
    UNKNOWN = "unknown"
    """A token or certificate that is not known."""
    EXPIRED = "expired"
    """A token or certificate whose time is over."""
    INVALID = "invalid"
    """A JWT that is malformed, forged, or not for this server."""
    SCOPE = "scope"
    """A caller that lacks the scope of the method."""


class RefusedError(Exception):
    """Refusal of a caller's credentials, before it is told to anybody.

    Attributes:
        cause: the cause, for the metric.
        detail: words for the log, without the secret.
    """

    def __init__(self, cause: Cause, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause
        self.detail = detail


class Failures:
    """Counter and log of refused calls.

    Strangers must not fill the disk: of each minute's refusals only the first few are logged one by
    one, and the number of the others.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: dict[str, int] = dict.fromkeys(Cause, 0)
        self._minute = -1
        self._num_lines = 0

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of refused calls by cause, since the server's start."""
        return self._counts

    def note(self, cause: Cause, method: str, address: str, detail: str) -> None:
        """Count a refused call, and log it."""
        self._counts[cause] += 1
        minute = int(self._clock() // 60)
        if minute != self._minute:
            if self._num_lines > _LINES_A_MINUTE:
                _log.warning(
                    "%d more calls were refused in a minute", self._num_lines - _LINES_A_MINUTE
                )
            self._minute, self._num_lines = minute, 0
        self._num_lines += 1
        if self._num_lines <= _LINES_A_MINUTE:
            _log.warning("%s refused a call from %s: %s", method, address or "unknown", detail)
