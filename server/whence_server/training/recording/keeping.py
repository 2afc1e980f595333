"""Keeps a record without harm to the training: what fails here is said, and the training goes on.

A part that cannot be recorded is a gap, said once in the log and in the record. Where the record
itself cannot go on, without a step it would be a false one, recording stops as a whole. A training
that is worth nothing without its record asks for errors instead.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.training.recording.run import RecordedRun

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Keeping:
    """A run's record, as far as it can be kept.

    Args:
        required: whether what fails ends the training.

    Attributes:
        run: what is on record in this process; None before the training and beside rank 0.
        is_on: whether anything is recorded still.
    """

    def __init__(self, *, required: bool) -> None:
        self.run: RecordedRun | None = None
        self.is_on = True
        self._required = required

    def begin(self, open_run: Callable[[], RecordedRun]) -> None:
        """Begin a run's record, or goes on with one.

        Raises:
            LineageError: the run cannot be put on record there; no step has been made yet.
            ConfigurationError: a variable of OpenTelemetry's is malformed.
        """
        self.run = None
        try:
            self.run = open_run()
        except (LineageError, ConfigurationError):
            raise
        except Exception as error:  # noqa: BLE001 - see the module
            self._raise_if_required(error)
            self.is_on = False
            _log.exception("the training is not recorded; it goes on without")

    def everything(self, act: Callable[[RecordedRun], T]) -> T | None:
        """Record something without which all that follows would be false."""
        if self.run is None or not self.is_on:
            return None
        try:
            return act(self.run)
        except Exception as error:  # noqa: BLE001 - see the module
            self._raise_if_required(error)
            self.stop(_told(error))
            return None

    def part(self, subject: str, act: Callable[[RecordedRun], T]) -> T | None:
        """Record something that may be missing; see `RecordingGap.subject`."""
        if self.run is None or not self.is_on:
            return None
        try:
            return act(self.run)
        except Exception as error:  # noqa: BLE001 - see the module
            self.failed(subject, error)
            return None

    def failed(self, subject: str, error: Exception) -> None:
        """Go on without a part; recording stops where that cannot be said either."""
        self._raise_if_required(error)
        if self.run is not None and self.run.is_broken:
            self.stop(_told(error))
        else:
            self.gap(subject, _told(error))

    def gap(self, subject: str, reason: str) -> None:
        """Say once what is not on record, and why."""
        self.everything(lambda run: run.gap(subject, reason))

    def stop(self, reason: str) -> None:
        """Record nothing more; the record says so if it can.

        Raises:
            LineageError: the training is worth nothing without its record.
        """
        self._raise_if_required(LineageError(reason))
        if not self.is_on:
            return
        self.is_on = False
        _log.error("recording has stopped, and the training goes on without: %s", reason)
        if self.run is not None:
            self.run.unrecorded(reason)

    def _raise_if_required(self, error: Exception) -> None:
        if self._required:
            raise error


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, LineageError) else f"{type(error).__name__}: {error}"
