"""Command `whence-server train`: signals and the last line of output."""

import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from whence_server.training.attest.signatures import open_key, sign_model
from whence_server.training.train.train import train

INTERRUPTED = 130


def run(given: dict[str, Any]) -> int:
    """Train.

    Returns:
        The exit status: 0, or 130 after a signal.

    Raises:
        ConfigurationError: a setting, the signing key or a text is wrong.
        LineageError: the record or the model cannot be written, or the record does not match.
    """
    signing_key = Path(given["signing_key"]) if given.get("signing_key") else None
    if signing_key is not None:
        # Before hours of training: nobody waits for an unusable key.
        open_key(signing_key)
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
    if signing_key is not None:
        key = sign_model(trained.directory, signing_key)
        print(f"{trained.directory}: signed by key {key.public.key_id}")
    ending = (
        "" if trained.loss is None else f", trained to a loss of {trained.loss:.2f} nats a token"
    )
    print(f"{trained.directory}{ending}")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt
