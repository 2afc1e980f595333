"""Choice of the journal's database."""

import importlib
from collections.abc import Callable
from pathlib import Path

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.journal_url import JournalUrl
from whence_server.journal.rows import Durability
from whence_server.journal.sqlite_store import SqliteStore
from whence_server.journal.store import Store


def choose_store(url: JournalUrl | None, lease_s: float) -> Callable[[Path, Durability], Store]:
    """Return the function that opens the store, for `Journal.open`.

    Args:
        url: address of a PostgreSQL database; None for SQLite in the data directory.
        lease_s: duration of the lease of a log in a shared database, in seconds.

    Raises:
        ConfigurationError: the library for the database is not installed.
    """
    if url is None:
        return SqliteStore
    import_postgres()
    from whence_server.journal.postgres.store import PostgresStore

    def open_store(_path: Path, _durability: Durability) -> Store:
        return PostgresStore(url.text, lease_s)

    return open_store


def import_postgres() -> None:
    """Import the library for PostgreSQL.

    Raises:
        ConfigurationError: it is not installed, or its own library, libpq, is missing.
    """
    try:
        importlib.import_module("psycopg")
    except ImportError:
        raise ConfigurationError(
            "a journal in PostgreSQL needs psycopg: pip install 'whence[server,postgres]'"
        ) from None
