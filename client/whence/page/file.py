"""Atomic writing of a page to a file."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def check_writable(path: Path) -> None:
    """Raise if a page cannot be written to the path, before anything is generated.

    Raises:
        OSError: the path cannot be written; the message has the reason.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory: name a file in it")
    if not path.parent.is_dir():
        raise NotADirectoryError(f"{path.parent} is not a directory: create it first")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file: choose another")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{path.parent} is not writable: choose another directory")


def write_page(path: Path, content: str) -> None:
    """Write a page to a temporary file beside the path, then rename it to the path.

    Raises:
        OSError: it cannot be written; an existing file is not changed.
    """
    check_writable(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)
        Path(temporary).chmod(0o666 & ~_read_umask())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def _read_umask() -> int:
    """Return the umask, which can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
