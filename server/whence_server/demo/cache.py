"""The user's cache directory, in which the demo's models are made once."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whence_server.config.environment import copy_environment


def find_cache_dir() -> Path:
    """Return `whence` in $XDG_CACHE_HOME or ~/.cache (XDG Base Directory Specification)."""
    given = copy_environment().get("XDG_CACHE_HOME", "")
    # The specification says to ignore relative paths.
    base = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return base / "whence"


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock on `path`; the system releases it when the process ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print_progress("another process is making the demo's model; waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def print_progress(line: str) -> None:
    """Print a line on standard error, at once."""
    print(line, file=sys.stderr, flush=True)
