"""Recognition of a changed file, without reading it."""

from pathlib import Path
from typing import TypeAlias

Fingerprint: TypeAlias = tuple[int, int, int] | None
"""Inode, size and time of change of a file; None if there is none."""


def take_fingerprint(path: Path) -> Fingerprint:
    """Return a value that differs after the file, or the link to it, was replaced or written."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
