"""A connection to PostgreSQL with the part of apsw's interface that the journal's SQL uses."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import IsolationLevel
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.postgres.dialect import translate_definition, translate_query
from whence_server.journal.postgres.errors import translate_errors

# The operating system notices a network that is cut within these times.
_DEFAULTS = {
    "application_name": "whence",
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "target_session_attrs": "read-write",
}


class PostgresConnection:
    """One session; statements outside a `with` block are transactions of their own.

    Attributes:
        raw: psycopg's connection.
    """

    def __init__(self, url: str, *, snapshots: bool = False) -> None:
        """Connect to the database.

        Args:
            url: address of the database; a password may also come from PGPASSFILE or PGPASSWORD.
            snapshots: whether a `with` block reads one state of the database and writes nothing.

        Raises:
            ConfigurationError: the address is malformed.
            JournalUnreachableError: no connection comes about.
        """
        parameters = _DEFAULTS | parse_url(url)
        with translate_errors():
            self.raw = psycopg.connect(
                "", autocommit=True, cursor_factory=psycopg.Cursor, **parameters
            )
        # One type for all integers: a statement is prepared once.
        self.raw.adapters.register_dumper(int, Int8Dumper)
        self.raw.adapters.register_dumper(int, Int8BinaryDumper)
        # Whatever the database's default is: who waited for a lock must see what was committed.
        self.raw.isolation_level = (
            IsolationLevel.REPEATABLE_READ if snapshots else IsolationLevel.READ_COMMITTED
        )
        if snapshots:
            self.raw.read_only = True
        self._transactions: list[AbstractContextManager[Any]] = []

    @property
    def filename(self) -> str:
        """Name of the database, for messages."""
        return f"database {self.raw.info.dbname!r}"

    @property
    def is_broken(self) -> bool:
        """True if the session has ended."""
        return self.raw.closed

    def execute(self, sql: str, bindings: Sequence[Any] = ()) -> Any:
        """Execute one statement; without bindings, several.

        Returns:
            A cursor over its rows.
        """
        with translate_errors():
            cursor = self.raw.cursor(binary=True)
            if bindings:
                return cursor.execute(translate_query(sql), _encode(bindings))
            if "CREATE TABLE" in sql or "ALTER TABLE" in sql:
                sql = translate_definition(sql)
            # Several statements at once go by the simple protocol, whose rows are texts.
            if ";" in sql:
                return self.raw.cursor().execute(sql)
            return cursor.execute(translate_query(sql).replace("%%", "%"))

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Execute one statement for each row of bindings, without waiting between them."""
        with translate_errors(), self.raw.cursor(binary=True) as cursor:
            cursor.executemany(translate_query(sql), [_encode(row) for row in rows])

    def pragma(self, name: str, value: int | None = None) -> int:
        """Return or set `user_version`, the version of the schema; no other pragma exists here."""
        if name != "user_version":
            raise ValueError(f"PostgreSQL has no pragma {name}")
        if value is None:
            ((version,),) = self.execute("SELECT version FROM schema_version").fetchall()
            return int(version)
        self.execute("UPDATE schema_version SET version = ?", (value,))
        return value

    def __enter__(self) -> Self:
        with translate_errors():
            transaction = self.raw.transaction()
            transaction.__enter__()
        self._transactions.append(transaction)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with translate_errors():
            self._transactions.pop().__exit__(kind, error, traceback)

    def close(self) -> None:
        """End the session."""
        self.raw.close()


@contextmanager
def close_on_error(connection: PostgresConnection) -> Iterator[None]:
    """End a session that could not be prepared: nothing else refers to it."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def parse_url(url: str) -> dict[str, Any]:
    """Return the parameters in a URL of PostgreSQL.

    Raises:
        ConfigurationError: it is malformed; the message does not repeat it, as it may hold a
            password.
    """
    try:
        given = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        raise ConfigurationError(
            "the address of a database is no URL of PostgreSQL: write "
            "postgresql://USER@HOST:PORT/DATABASE in --journal, --journal-keys, --from or --to"
        ) from None
    return {name: value for name, value in given.items() if value is not None}


def _encode(bindings: Sequence[Any]) -> list[Any]:
    """Return bindings with texts as bytes, as the columns hold them."""
    return [
        value.encode(errors="replace")
        if isinstance(value, str)
        else int(value)
        if isinstance(value, int)
        else value
        for value in bindings
    ]
