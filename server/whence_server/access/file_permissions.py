"""Permissions of the files that say who may call."""

import stat
from pathlib import Path

from whence_server.domain.errors import ConfigurationError


def check_writers(flag: str, path: Path) -> None:
    """Raise if the file's group or everybody can write to it: they could make themselves callers.

    Args:
        flag: the setting that names the file.
        path: path of the file.

    Raises:
        ConfigurationError: they can.
        OSError: the file cannot be looked at.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigurationError(
            f"{flag} {path}: its group or others can write to it (mode {mode:03o}), and could add "
            f"callers; run chmod go-w {path}"
        )
