"""Command `whence-server train`: signals and the last line of output."""

import logging
import signal
import sys
from types import FrameType
from typing import Any

from whence_server.training.train.train import train

INTERRUPTED = 130


def run(given: dict[str, Any]) -> int:
    """Train.

    Returns:
        The exit status: 0, or 130 after a signal.

    Raises:
        ConfigurationError: a setting or a text is wrong.
        LineageError: the record or the model cannot be written, or the record does not match.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Handled like Ctrl-C, so that the record gets the attempt's end.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        trained = train(given)
    except KeyboardInterrupt:
        print("interrupted; resume from the last checkpoint with --resume", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    ending = (
        "" if trained.loss is None else f", trained to a loss of {trained.loss:.2f} nats a token"
    )
    print(f"{trained.directory}{ending}")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt
