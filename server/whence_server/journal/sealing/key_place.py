"""Places of a database of keys: a file, or a database of PostgreSQL."""

from pathlib import Path
from typing import TypeAlias

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.journal_url import JournalUrl
from whence_server.journal.sealing.key_database import KeyDatabase
from whence_server.journal.sealing.key_store import KeyStore

FILE_NAME = "keys.db"
KeyPlace: TypeAlias = Path | JournalUrl


def find_keys(
    data_dir: Path | None, journal: JournalUrl | None, place: KeyPlace | None
) -> KeyPlace:
    """Return the place of a journal's keys.

    Args:
        data_dir: directory of a journal in SQLite.
        journal: address of a journal in PostgreSQL, where its keys are too by default.
        place: place that was given; None for the default.

    Raises:
        ConfigurationError: neither a place nor a journal is given.
    """
    if place is not None:
        return place
    if journal is not None:
        return journal
    if data_dir is None:
        raise ConfigurationError("give --data-dir, --journal or --journal-keys")
    return data_dir / FILE_NAME


def open_keys(place: KeyPlace, *, create: bool = False, read_only: bool = False) -> KeyStore:
    """Open a database of keys.

    Args:
        place: the file, or the address of the database.
        create: whether to make it if there is none.
        read_only: whether nothing is written to it.

    Raises:
        ConfigurationError: it is missing, of a newer version, or cannot be used.
    """
    if isinstance(place, Path):
        if not create and not place.is_file():
            raise ConfigurationError(f"there is no database of keys {place}")
        return KeyDatabase(place, create=create, read_only=read_only)
    from whence_server.journal.open_store import import_postgres

    import_postgres()
    from whence_server.journal.postgres.keys import PostgresKeys

    return PostgresKeys(place.text, create=create)
