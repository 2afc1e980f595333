"""Runs `whence-server train`: signals, and what is said at the end."""

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
        The exit status: 0, or 130 where a signal ended it.

    Raises:
        ConfigurationError: a setting or a text is wrong.
        LineageError: the record or the model cannot be written, or tells of something else.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # As a Ctrl-C, so that the record says how it ended.
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        trained = train(given)
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
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
