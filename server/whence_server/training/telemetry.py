"""Starts the export of a training run's trace and metrics beside the training.

It is a process of its own that follows the record's file: nothing of gRPC or OpenTelemetry comes
into the process that trains, which may fork data-loader workers, and nothing of it waits. Where no
endpoint is set there is none.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from whence_server.config.otlp import otlp_settings, span_destination

_log = logging.getLogger(__name__)

FLUSH_S = 10.0
"""How long the end of a training may wait for a collector."""
_GRACE_S = 5.0
MODULE = "whence_server.training.export"


def start(record: Path, environment: Mapping[str, str] = os.environ) -> "TrainingExport | None":
    """Begins to export, as OpenTelemetry's variables have it; None where they name no destination.

    Args:
        record: the run's, which is there already.
        environment: where the variables are; the process gets it whole.

    Raises:
        ConfigurationError: a variable is malformed; the message names it.
    """
    spans = span_destination(environment, "", "", "")
    if spans is None and otlp_settings(environment, "metrics") is None:
        return None
    return TrainingExport(record, environment)


class TrainingExport:
    """The process that exports a run. It ends when this one does, however that ends."""

    def __init__(self, record: Path, environment: Mapping[str, str]) -> None:
        """Starts it; see `start`."""
        self._record = record
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", MODULE, str(record), "--follow"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=dict(environment),
            # Ctrl-C is for the training, whose end is to be sent.
            start_new_session=True,
        )

    def close(self, timeout_s: float = FLUSH_S + _GRACE_S) -> bool:
        """Lets it send what is recorded by now, and ends it.

        Returns:
            Whether all was sent; where it was not, a warning says how to send the rest.
        """
        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if status:
            _log.warning(
                "not all of the run's spans were sent; send the rest with: %s -m %s %s",
                sys.executable,
                MODULE,
                self._record,
            )
        return status == 0
