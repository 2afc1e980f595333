"""Search for the record of a model's training near the model's directory."""

from collections.abc import Iterator
from pathlib import Path

from whence_server.lineage.reader import RECORD_NAME

_LEVELS_ABOVE = 2


def find_record_near(directory: Path) -> Path | None:
    """Return the record nearest to a model's directory; None if there is none."""
    return next(find_records_near(directory.absolute()), None)


def find_records_near(directory: Path) -> Iterator[Path]:
    """Yield the records in a model's directory, then those up to two levels above it.

    Args:
        directory: the model's directory, an absolute path.
    """
    for place in (directory, *directory.parents[:_LEVELS_ABOVE]):
        record = place / RECORD_NAME
        if record.is_file():
            yield record
