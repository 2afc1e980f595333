"""Making of key files."""

import os
import tempfile
from pathlib import Path

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.sealing.key_source import FLAG, check_key_file
from whence_server.journal.sealing.master_keys import (
    MasterKey,
    make_master_key,
    parse_master_keys,
)


def add_master_key(path: Path) -> MasterKey:
    """Put a new master key on the first line of a file, which is made if it is missing.

    Keys that the file has stay below it, until a rotation no longer needs them. The file is
    replaced in one step, and synced to disk before.

    Raises:
        ConfigurationError: the file is no file of keys, or cannot be written.
    """
    new = make_master_key()
    try:
        older = _read_older(path)
        # mkstemp gives mode 0600.
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(f"{new}\n{older}")
                file.flush()
                os.fsync(file.fileno())
            _check_place(path, older)
            Path(partial).replace(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigurationError(f"{FLAG} {path}: cannot be written ({error.strerror})") from None
    except ValueError as error:
        raise ConfigurationError(f"{FLAG} {path}: {error}") from None
    return parse_master_keys(new)[0]


def _read_older(path: Path) -> str:
    if not path.exists():
        return ""
    check_key_file(path)
    older = path.read_bytes().decode(errors="replace")
    if older.strip():
        parse_master_keys(older)
    return older


def _check_place(path: Path, older: str) -> None:
    """Raise ValueError if the file was changed meanwhile."""
    if _read_older(path) != older:
        raise ValueError("was changed at the same time by another process")
