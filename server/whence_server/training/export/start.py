"""Starts the export of a training run's trace and metrics beside the training.

It is a process of its own that follows the record's file: nothing of gRPC or OpenTelemetry comes
into the process that trains, which may fork data-loader workers, and nothing of it waits. Where no
endpoint is set there is none.
"""

import atexit
import logging
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from whence_server.config.environment import process_environment
from whence_server.config.otlp import read_otlp_settings, span_destination

_log = logging.getLogger(__name__)

FLUSH_S = 10.0
"""How long the end of a training may wait for a collector."""
_GRACE_S = 10.0
MODULE = "whence_server.training.export"
_running: dict[Path, "TrainingExport"] = {}


def start(record: Path, environment: Mapping[str, str] | None = None) -> "TrainingExport | None":
    """Begin to export, as OpenTelemetry's variables have it; None where they name no destination.

    It goes on until this process ends, and so has what is recorded after the training, too. Asked
    again for the same record, it gives what runs already.

    Args:
        record: the run's, which is there already.
        environment: the variables, passed to the process whole; None for this process's own.

    Raises:
        ConfigurationError: a variable is malformed; the message names it.
    """
    environment = process_environment() if environment is None else environment
    running = _running.get(record.resolve())
    if running is not None and running.is_running:
        return running
    if not is_wanted(environment):
        return None
    export = _running[record.resolve()] = TrainingExport(record, environment)
    atexit.register(export.close)
    return export


def finish(record: Path) -> None:
    """End the export of a run, if there is one: what follows its record by name lets go of it.

    To be called once the training is over and before the record is moved. Takes as long as
    `TrainingExport.close`.
    """
    running = _running.pop(record.resolve(), None)
    if running is not None:
        atexit.unregister(running.close)
        running.close()


def is_wanted(environment: Mapping[str, str] | None = None) -> bool:
    """Whether OpenTelemetry's variables name a destination for a trace or for metrics.

    Raises:
        ConfigurationError: a variable is malformed; the message names it.
    """
    environment = process_environment() if environment is None else environment
    spans = span_destination(environment, "", "", "")
    return spans is not None or read_otlp_settings(environment, "metrics") is not None


class TrainingExport:
    """The process that exports a run. It ends when this one does, however that ends."""

    def __init__(self, record: Path, environment: Mapping[str, str]) -> None:
        """Start it; see `start`."""
        self._record = record
        self._closed = False
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", MODULE, str(record), "--follow"],
            stdin=subprocess.PIPE,
            env=dict(environment),
            # Ctrl-C is for the training, whose end is to be sent.
            start_new_session=True,
        )

    @property
    def is_running(self) -> bool:
        """Whether it follows the record."""
        return not self._closed and self._process.poll() is None

    def close(self, timeout_s: float = FLUSH_S + _GRACE_S) -> bool:
        """Let it send what is recorded by now, and ends it.

        Returns:
            Whether all was sent; where it was not, a warning says how to send the rest.
        """
        process, was_closed = self._process, self._closed
        self._closed = True
        if process.stdin is not None and not was_closed:
            # The end of its input alone would not do: workers that were forked from this process
            # hold the pipe open, too.
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
