"""Where the record of a model's training may lie, seen from the model."""

from collections.abc import Iterator
from pathlib import Path

from whence_server.lineage.reader import RECORD_NAME

_LEVELS_ABOVE = 2


def record_near(directory: Path) -> Path | None:
    """The record of the run that a model may have come of; None where there is none."""
    return next(records_near(directory.absolute()), None)


def records_near(directory: Path) -> Iterator[Path]:
    """The records beside a model, then up to two levels above it.

    Args:
        directory: the model's, absolute.
    """
    for place in (directory, *directory.parents[:_LEVELS_ABOVE]):
        record = place / RECORD_NAME
        if record.is_file():
            yield record
