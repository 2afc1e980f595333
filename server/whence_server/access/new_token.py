"""Making of tokens: the secret is shown once, and the file keeps its SHA-256."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from whence_server.access.token_file import FLAG
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.identity import Scope

PREFIX = "whence_"
"""Beginning of every token, by which scanners find one that was published."""
_SECRET_BYTES = 32


class NewToken(NamedTuple):
    """A token, and the line by which a server accepts it."""

    token: str
    line: str


def make_token(name: str, scopes: Iterable[Scope], expires: datetime | None) -> NewToken:
    """Make a random token of 256 bits for a caller.

    Args:
        name: id of the caller.
        scopes: its scopes.
        expires: time from which the token is not accepted; None for never.
    """
    token = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    entry: dict[str, object] = {
        "id": name,
        "sha256": hashlib.sha256(token.encode()).hexdigest(),
        "scopes": sorted(scopes),
    }
    if expires is not None:
        entry["expires"] = expires.isoformat(timespec="seconds").replace("+00:00", "Z")
    return NewToken(token, json.dumps(entry))


def append_line(path: Path, line: str) -> None:
    """Append a line to a file of callers, which is made with mode 0600 if it is missing.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            before = b"" if file.read(1) in {b"", b"\n"} else b"\n"
            file.write(before + line.encode() + b"\n")
    except OSError as error:
        raise ConfigurationError(f"{FLAG} {path}: cannot be written ({error.strerror})") from None
