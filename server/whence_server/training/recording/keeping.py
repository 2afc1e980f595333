"""Recording that does not disturb the training: an error here is logged, and training continues.

A part that cannot be recorded becomes a gap, which the log and the record name once. If a step
cannot be recorded, later entries would be wrong, so that recording stops. With `required` every
error is raised instead.
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.training.recording.run import RecordedRun

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Keeping:
    """Recording of a run, with the treatment of its errors.

    Args:
        required: True if an error of the recording ends the training.

    Attributes:
        run: the recorded run; None before the training, and in processes other than rank 0.
        is_on: True until recording stops.
    """

    def __init__(self, *, required: bool) -> None:
        self.run: RecordedRun | None = None
        self.is_on = True
        self._required = required

    def begin(self, open_run: Callable[[], RecordedRun]) -> None:
        """Begin a run's record, or resume it.

        Raises:
            LineageError: the run cannot be recorded; no step was made yet.
            ConfigurationError: a variable of OpenTelemetry is malformed.
        """
        self.run = None
        try:
            self.run = open_run()
        except (LineageError, ConfigurationError):
            raise
        except Exception as error:  # noqa: BLE001 - see the module
            self._raise_if_required(error)
            self.is_on = False
            _log.exception("the training is not recorded, and continues")

    def record_or_stop(self, act: Callable[[RecordedRun], T]) -> T | None:
        """Record something that later entries depend on; stop recording if it fails."""
        if self.run is None or not self.is_on:
            return None
        try:
            return act(self.run)
        except Exception as error:  # noqa: BLE001 - see the module
            self._raise_if_required(error)
            self.stop(_format_error(error))
            return None

    def record_part(self, subject: str, act: Callable[[RecordedRun], T]) -> T | None:
        """Record something that may be missing, or a gap; see `RecordingGap.subject`."""
        if self.run is None or not self.is_on:
            return None
        try:
            return act(self.run)
        except Exception as error:  # noqa: BLE001 - see the module
            self.record_failure(subject, error)
            return None

    def record_failure(self, subject: str, error: Exception) -> None:
        """Record that a part is missing; stop recording if that fails, too."""
        self._raise_if_required(error)
        if self.run is not None and self.run.is_broken:
            self.stop(_format_error(error))
        else:
            self.record_gap(subject, _format_error(error))

    def record_gap(self, subject: str, reason: str) -> None:
        """Record a gap once, in the log too."""
        self.record_or_stop(lambda run: run.record_gap(subject, reason))

    def stop(self, reason: str) -> None:
        """Stop recording, and put that on record if possible.

        Raises:
            LineageError: recording is required.
        """
        self._raise_if_required(LineageError(reason))
        if not self.is_on:
            return
        self.is_on = False
        _log.error("recording has stopped, and the training continues: %s", reason)
        if self.run is not None:
            self.run.stop(reason)

    def _raise_if_required(self, error: Exception) -> None:
        if self._required:
            raise error


def _format_error(error: Exception) -> str:
    return str(error) if isinstance(error, LineageError) else f"{type(error).__name__}: {error}"
