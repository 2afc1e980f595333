"""Places from which the server reads the journal's master keys."""

import re
from dataclasses import dataclass
from enum import StrEnum

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


class KeyScheme(StrEnum):
    """Kind of place."""

    FILE = "file"
    """A file, read again when a key is missing."""
    ENV = "env"
    """An environment variable of the server."""
    EXEC = "exec"
    """A command that prints the keys, e.g. the client of a key service."""


@dataclass(frozen=True, slots=True)
class KeySource:
    """Place of the master keys; it holds no secret itself."""

    scheme: KeyScheme
    place: str
    """Path, name of a variable, or command line."""

    def __str__(self) -> str:
        """Format the source as it is given in the setting."""
        return f"{self.scheme}:{self.place}"


def parse_key_source(text: str) -> KeySource:
    """Parse FILE, file:FILE, env:NAME or exec:COMMAND.

    Raises:
        ValueError: it is none of them.
    """
    found = _SCHEME.match(text)
    if found is None:
        scheme, place = KeyScheme.FILE, text
    elif found[1] in list(KeyScheme):
        scheme, place = KeyScheme(found[1]), text[found.end() :]
    else:
        raise ValueError(
            f"{found[1]}: is no kind of place; expected FILE, file:FILE, env:NAME, or exec:COMMAND "
            "with a command that prints the key, e.g. the client of a key service"
        )
    if not place.strip() or "\0" in place:
        raise ValueError("expected FILE, file:FILE, env:NAME or exec:COMMAND")
    return KeySource(scheme, place)
