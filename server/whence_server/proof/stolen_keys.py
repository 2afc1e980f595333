"""Lists of signing keys that ended with a stolen key, as the file of the list has them."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from whence.proof.faults import ProofError
from whence.proof.key_list import KeyEntry, parse_entry
from whence.proof.times import read_time
from whence_server.domain.errors import ConfigurationError

_MAX_LIST_BYTES = 4 << 20


class StolenList(NamedTuple):
    """A list whose last key was stolen.

    Attributes:
        entries: entries of its keys, oldest first.
        since: time from which the last one is known to be stolen.
    """

    entries: Sequence[bytes]
    since: datetime

    def parse(self) -> list[KeyEntry]:
        """Return its keys. Raises ProofError if one is damaged."""
        return [parse_entry(data, "stolen.entries") for data in self.entries]


def read_stolen(path: Path) -> list[StolenList]:
    """Return the lists in the file of a list of keys, oldest first; nothing without a file.

    Raises:
        ConfigurationError: it is damaged.
    """
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_LIST_BYTES)).get("stolen", [])
        lists = [
            StolenList(
                [entry.encode() for entry in one["entries"]],
                read_time(one["since"], "stolen.since"),
            )
            for one in found
        ]
        for one in lists:
            one.parse()
    except FileNotFoundError:
        return []
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ProofError,
        RecursionError,
    ) as error:
        raise ConfigurationError(f"{path}: its lists of stolen keys are damaged: {error}") from None
    return lists


def spell_stolen(lists: Sequence[StolenList]) -> list[dict[str, Any]]:
    """Return the lists as the file has them."""
    return [
        {"entries": [data.decode() for data in one.entries], "since": spell_since(one.since)}
        for one in lists
    ]


def spell_since(since: datetime) -> str:
    """Return a time in UTC as RFC 3339 text."""
    return since.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
