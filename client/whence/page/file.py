"""Where a page is written to: whole, or not at all."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def check_writable(path: Path) -> None:
    """Make sure, before anything is spent, that a page can be written there.

    Raises:
        OSError: it cannot; the message says why.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory: name a file in it")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path.parent} is no directory: make it first")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no ordinary file: name another")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path.parent} may not be written to: name another directory")


def write_page(path: Path, content: str) -> None:
    """Write a page beside its place, and then moves it there: nobody ever sees half of one.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    check_writable(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def _umask() -> int:
    """What this process takes away from a new file's permissions; it can only be set."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
