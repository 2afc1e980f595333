"""Permissions of the journal's files: they hold prompts and answers, for their owner alone."""

import logging
import os
import stat
from pathlib import Path

_log = logging.getLogger(__name__)

_FILE, _DIRECTORY = 0o600, 0o700
_OTHERS = 0o077
_NAMES = (
    "journal.db",
    "journal.db-wal",
    "journal.db-shm",
    "journal.lock",
    "digests.json",
    "findings.json",
    "keys.db",
)


def make_directory(data_dir: Path) -> None:
    """Create the data directory with mode 0700; log a warning if its mode allows more.

    The mode of an existing directory is not changed: it may be a mount point.

    Raises:
        OSError: it cannot be created, or is not a directory.
    """
    if not data_dir.is_dir():
        data_dir.mkdir(mode=_DIRECTORY, parents=True, exist_ok=True)
        data_dir.chmod(_DIRECTORY)
    mode = stat.S_IMODE(data_dir.stat().st_mode)
    if mode & _OTHERS:
        _log.warning(
            "the data directory %s has mode %04o: other users can enter it, and see or replace "
            "files in it; chmod 700 makes it private",
            data_dir,
            mode,
        )


def make_private(data_dir: Path) -> None:
    """Give the journal's files mode 0600; SQLite gives its other files the database's mode.

    Raises:
        OSError: the database's file cannot be created.
    """
    descriptor = os.open(data_dir / "journal.db", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE)
    os.close(descriptor)
    for name in _NAMES:
        path = data_dir / name
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode != _FILE:
                path.chmod(_FILE)
        except FileNotFoundError:
            continue
        except PermissionError:
            _log.warning(
                "%s has mode %04o and belongs to another user: other users may read or write it",
                path,
                mode,
            )
