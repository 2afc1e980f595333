"""Settings of the journal's encryption."""

from dataclasses import dataclass
from pathlib import Path

from whence_server.config.fields import declare_setting
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.journal_url import JournalUrl, parse_place
from whence_server.domain.key_sources import KeySource, parse_key_source


# Without slots: a class cannot inherit the slots of two.
@dataclass(frozen=True, kw_only=True)
class SealingSettings:
    """The part of the server's settings that says how the journal is encrypted."""

    journal_key: KeySource | None = declare_setting(
        None,
        parse_key_source,
        "place of the master key with which the content of the journal is encrypted: FILE, "
        "file:FILE, env:NAME, or exec:COMMAND, which prints it; `whence-server key new` makes one "
        "(default: the journal is not encrypted)",
        "PLACE",
    )
    journal_keys: Path | JournalUrl | None = declare_setting(
        None,
        parse_place,
        "database of the keys of generations, wrapped by the master key: a file, or with --journal "
        "a PostgreSQL database, postgresql://USER@HOST:PORT/DATABASE (default: keys.db in "
        "--data-dir, or the database of --journal)",
        "FILE_OR_URL",
        secret=True,
    )


def check_sealing(settings: SealingSettings, journal: JournalUrl | None) -> None:
    """Check settings that must fit together.

    Args:
        settings: settings of the encryption.
        journal: address of a journal that several servers can share.

    Raises:
        ConfigurationError: they do not.
    """
    if settings.journal_keys is not None and settings.journal_key is None:
        raise ConfigurationError(
            "--journal-keys is set without --journal-key, which unwraps the keys in it"
        )
    if journal is not None and isinstance(settings.journal_keys, Path):
        raise ConfigurationError(
            "--journal-keys is a file, and with --journal the keys are in a PostgreSQL database, "
            "which all its servers share: leave it out, or give postgresql://USER@HOST:PORT/DATABASE"
        )
