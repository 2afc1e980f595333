"""Directory for the engine's compiled loops, which are then compiled once and not at each start."""

import logging
import os
import stat
from pathlib import Path

_log = logging.getLogger(__name__)


def prepare_code_cache(directory: Path) -> str:
    """Create a directory for compiled code, in which numba keeps it.

    The files are code that later starts run, so the directory above must be one to which only this
    user can write; otherwise nothing is kept.

    Args:
        directory: is created with mode 0700, and so is the one above it.

    Returns:
        The directory's path; "" if nothing is to be kept.
    """
    above = directory.parent
    try:
        if not above.is_dir():
            above.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = above.stat()
        if status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            directory.mkdir(mode=0o700, exist_ok=True)
            return str(directory.resolve())
        _log.warning(
            "compiled code is not kept in %s, because others can write to the directory above: "
            "each start compiles it, which takes two seconds",
            directory,
        )
    except OSError as error:
        _log.warning("compiled code cannot be kept in %s: %s", directory, error.strerror)
    return ""
