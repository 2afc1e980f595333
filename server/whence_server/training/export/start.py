"""Start and end of the process that exports a training run's trace and metrics.

The process follows the record's file, so that the training, which may fork data loader workers,
neither loads gRPC or OpenTelemetry nor waits for them. Without an endpoint no process is started.
"""

import atexit
import logging
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from whence_server.config.environment import copy_environment
from whence_server.config.otlp import read_otlp_settings, read_span_destination

_log = logging.getLogger(__name__)

FLUSH_S = 10.0
"""Longest wait for a collector at the end of a training, in seconds."""
_GRACE_S = 10.0
MODULE = "whence_server.training.export"
_running: dict[Path, "TrainingExport"] = {}


def start(record: Path, environment: Mapping[str, str] | None = None) -> "TrainingExport | None":
    """Begin to export; return None if OpenTelemetry's variables name no destination.

    The export continues until this process ends, and so includes entries recorded after the
    training. A second call for the same record returns the running export.

    Args:
        record: path of the run's record, which exists.
        environment: environment of the exporting process; None for this process's own.

    Raises:
        ConfigurationError: a variable is malformed; the message names it.
    """
    environment = copy_environment() if environment is None else environment
    running = _running.get(record.resolve())
    if running is not None and running.is_running:
        return running
    if not is_wanted(environment):
        return None
    export = _running[record.resolve()] = TrainingExport(record, environment)
    atexit.register(export.close)
    return export


def finish(record: Path) -> None:
    """End the export of a run, if there is one, so that the record can be moved.

    It waits as long as `TrainingExport.close`.
    """
    running = _running.pop(record.resolve(), None)
    if running is not None:
        atexit.unregister(running.close)
        running.close()


def is_wanted(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether OpenTelemetry's variables name a destination for a trace or for metrics.

    Raises:
        ConfigurationError: a variable is malformed; the message names it.
    """
    environment = copy_environment() if environment is None else environment
    spans = read_span_destination(environment, "", "", "")
    return spans is not None or read_otlp_settings(environment, "metrics") is not None


class TrainingExport:
    """Process that exports a run; it ends when the training's process ends."""

    def __init__(self, record: Path, environment: Mapping[str, str]) -> None:
        """Start the process; see `start`."""
        self._record = record
        self._closed = False
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", MODULE, str(record), "--follow"],
            stdin=subprocess.PIPE,
            env=dict(environment),
            # Ctrl-C is for the training; the export then still sends the training's end.
            start_new_session=True,
        )

    @property
    def is_running(self) -> bool:
        """True if the process follows the record."""
        return not self._closed and self._process.poll() is None

    def close(self, timeout_s: float = FLUSH_S + _GRACE_S) -> bool:
        """Wait until the recorded entries are sent, and end the process.

        Returns:
            True if all was sent; otherwise the log names the command that sends the rest.
        """
        process, was_closed = self._process, self._closed
        self._closed = True
        if process.stdin is not None and not was_closed:
            # Closing the pipe is not enough: workers that were forked from this process
            # hold it open, too.
            with suppress(OSError):
                process.stdin.write(b"end\n")
                process.stdin.close()
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status and not was_closed:
            _log.warning(
                "not all of the run's spans were sent; send the rest with: %s -m %s %s",
                sys.executable,
                MODULE,
                self._record,
            )
        return status == 0
