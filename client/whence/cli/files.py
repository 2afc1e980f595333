"""Files that commands read, and replace whole or not at all."""

import os
import tempfile
from pathlib import Path

from whence.cli.exits import UsageError


def read_file(path: Path, limit: int) -> bytes:
    """Return what a file holds, at most one byte more than the limit.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also if the power fails; one that exists keeps its mode.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, _find_mode(path))
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def _find_mode(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        # The mask can only be read by setting it.
        mask = os.umask(0o077)
        os.umask(mask)
        return 0o666 & ~mask
