"""Settings of the journal's database."""

from dataclasses import dataclass

from whence_server.config.fields import declare_setting
from whence_server.config.spelling import parse_seconds
from whence_server.domain.journal_url import JournalUrl, parse_journal_url

_SHORTEST_LEASE_S, _LONGEST_LEASE_S = 1.0, 3_600.0


def parse_lease_seconds(text: str) -> float:
    """Parse the duration of a lease, in seconds."""
    seconds = parse_seconds(text)
    if not _SHORTEST_LEASE_S <= seconds <= _LONGEST_LEASE_S:
        raise ValueError(f"expected {_SHORTEST_LEASE_S:g} to {_LONGEST_LEASE_S:,g} seconds")
    return seconds


# Without slots: a class cannot inherit the slots of two.
@dataclass(frozen=True, kw_only=True)
class JournalSettings:
    """The settings of the journal's database."""

    journal: JournalUrl | None = declare_setting(
        None,
        parse_journal_url,
        "PostgreSQL database of the journal, which several servers can share: "
        "postgresql://USER@HOST:PORT/DATABASE (default: an SQLite database in --data-dir)",
        "URL",
        secret=True,
    )
    journal_lease: float = declare_setting(
        10.0,
        parse_lease_seconds,
        "seconds without a sign of life after which this server's log counts as left; another "
        "server that shares --journal takes it over after as long again",
        "S",
    )
    journal_patience: float = declare_setting(
        30.0,
        parse_seconds,
        "seconds for which running streams wait while the journal cannot be written, because the "
        "disk is full or the database is away; after them a stream ends with an error, and its "
        "caller can resume it",
        "S",
    )
