"""Reading of master keys from a file, an environment variable or a command."""

import shlex
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.key_sources import KeyScheme, KeySource
from whence_server.journal.sealing.master_keys import MasterKey, parse_master_keys

FLAG = "--journal-key"
_COMMAND_S = 30.0
_MAX_BYTES = 64 << 10
_FORBIDDEN = stat.S_IWGRP | stat.S_IRWXO


def read_master_keys(source: KeySource, environment: Mapping[str, str]) -> tuple[MasterKey, ...]:
    """Read the master keys of a source, the newest first.

    Args:
        source: place of the keys.
        environment: environment variables, for a source that names one.

    Raises:
        ConfigurationError: they cannot be read, or others may read them.
    """
    try:
        return parse_master_keys(_read_text(source, environment))
    except OSError as error:
        raise ConfigurationError(
            f"{FLAG} {source}: cannot be read ({error.strerror or error})"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"{FLAG} {source}: {error}") from None


def check_key_file(path: Path) -> None:
    """Check that only the owner and the group of a key file can read it.

    Raises:
        OSError: there is no file.
        ValueError: others may read it, or the group may write it.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is no regular file")
    if found.st_mode & _FORBIDDEN:
        mode = stat.S_IMODE(found.st_mode)
        raise ValueError(
            f"has mode {mode:04o}: others may read it, or its group may write it; chmod 600 (or "
            "440) mends this"
        )
    if found.st_size > _MAX_BYTES:
        raise ValueError(f"has {found.st_size} bytes, which is no file of keys")


def _read_text(source: KeySource, environment: Mapping[str, str]) -> str:
    match source.scheme:
        case KeyScheme.FILE:
            return _read_file(source.place)
        case KeyScheme.ENV:
            return _read_variable(source.place, environment)
        case KeyScheme.EXEC:
            return _read_command(source.place)


def _read_file(place: str) -> str:
    path = Path(place).expanduser()
    check_key_file(path)
    return path.read_bytes().decode(errors="replace")


def _read_variable(name: str, environment: Mapping[str, str]) -> str:
    try:
        return environment[name]
    except KeyError:
        raise ValueError("the environment variable is not set") from None


def _read_command(command: str) -> str:
    """Run a command without a shell, and return what it prints; its output is never logged."""
    try:
        done = subprocess.run(  # noqa: S603 - the operator's own command
            shlex.split(command), capture_output=True, timeout=_COMMAND_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the command did not end within {_COMMAND_S:.0f} s") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        said = f": {last[0][:200]}" if last else ""
        raise ValueError(f"the command ended with status {done.returncode}{said}")
    return done.stdout[:_MAX_BYTES].decode(errors="replace")
