"""Making of key files."""

import os
import stat
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
    replaced in one step, keeps its owner, group and mode, and is on disk afterwards: a rotation
    wraps every data key by the new master key.

    Raises:
        ConfigurationError: the file is no file of keys, or cannot be written.
    """
    new = make_master_key()
    try:
        # A symbolic link stays one.
        path = path.resolve()
        older = _read_older(path)
        # mkstemp gives mode 0600.
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                _keep_readers(path, descriptor)
                file.write(f"{new}\n{older}")
                file.flush()
                os.fsync(file.fileno())
            _check_place(path, older)
            Path(partial).replace(path)
            _sync_directory(path.parent)
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


def _keep_readers(path: Path, descriptor: int) -> None:
    """Give a new file the owner, group and mode of the present one: a server has to read it.

    Raises:
        ValueError: only another user may do that.
    """
    if not path.exists():
        return
    present, new = path.stat(), os.fstat(descriptor)
    if (present.st_uid, present.st_gid) != (new.st_uid, new.st_gid):
        try:
            os.fchown(descriptor, present.st_uid, present.st_gid)
        except PermissionError:
            raise ValueError(
                f"belongs to user {present.st_uid} and group {present.st_gid}: run this command "
                "as that user, or as root"
            ) from None
    os.fchmod(descriptor, stat.S_IMODE(present.st_mode))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_place(path: Path, older: str) -> None:
    """Raise ValueError if the file was changed meanwhile."""
    if _read_older(path) != older:
        raise ValueError("was changed at the same time by another process")
