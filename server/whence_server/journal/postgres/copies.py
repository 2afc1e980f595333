"""A journal in PostgreSQL as the source and as the target of a copy."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from whence_server.domain.errors import ConfigurationError, JournalError
from whence_server.journal.findings import VerifyReport
from whence_server.journal.moving.sources import Source
from whence_server.journal.moving.tables import Table, list_tables
from whence_server.journal.postgres.connection import PostgresConnection
from whence_server.journal.postgres.dialect import translate_query
from whence_server.journal.postgres.errors import explain_for_operators, translate_errors
from whence_server.journal.postgres.schema import prepare_schema
from whence_server.journal.postgres.verify import (
    check_version,
    require_unused,
    verify_connection,
)
from whence_server.journal.sealing.sealed_logs import has_sealed

_ROWS_AT_A_TIME = 2_000
# A lease that was given back ends at '-infinity'.
_LEFT = """
    SELECT host FROM leases WHERE holder IS NOT NULL AND expires_at <> '-infinity' LIMIT 1
"""


class DatabaseSource:
    """One state of a database's journal, which servers may be using.

    Attributes:
        connection: reads that state.
    """

    def __init__(self, connection: PostgresConnection) -> None:
        self.connection = connection

    def has_sealed(self) -> bool:
        """Return whether the newest generation of a log is encrypted."""
        return has_sealed(self.connection)

    def read(self, table: Table) -> Iterator[tuple[Any, ...]]:
        """Yield all rows of a table, in the order of its key."""
        with translate_errors(), self.connection.raw.cursor(name="copy", binary=True) as cursor:
            cursor.itersize = _ROWS_AT_A_TIME
            cursor.execute(translate_query(table.make_select()))
            yield from cursor


@contextmanager
def open_database(url: str, *, exclusive: bool) -> Iterator[DatabaseSource]:
    """Open a database's journal in its present state; change nothing in it.

    Args:
        url: address of the database.
        exclusive: whether no server may use it.

    Raises:
        ConfigurationError: it cannot be read, holds no journal of this version, or a server uses
            it.
    """
    with ExitStack() as opened:
        connection = opened.enter_context(closing(_connect(url, snapshots=True)))
        check_version(connection)
        if exclusive:
            # Before the snapshot: what is written in between would be in no copy.
            keeper = opened.enter_context(closing(_connect(url)))
            opened.enter_context(keeper)
            _keep_servers_away(keeper)
        opened.enter_context(connection)
        yield DatabaseSource(connection)


def _keep_servers_away(keeper: PostgresConnection) -> None:
    """Let no server write, renew its lease or start, until the end of the transaction."""
    keeper.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    keeper.execute("SET LOCAL lock_timeout = '5s'")
    keeper.execute("LOCK TABLE leases IN EXCLUSIVE MODE")
    require_unused(keeper)
    for (host,) in keeper.execute(_LEFT).fetchall():
        raise ConfigurationError(
            f"a server on {host} did not stop in order, and its log in {keeper.filename} is not "
            "finished: start a server on it, wait until it has taken over and finished the log, "
            "and stop it"
        )


def write_database(source: Source, url: str) -> VerifyReport:
    """Write a journal to a database and verify it, in one transaction.

    Returns:
        The result of the verification. With findings, the database is left without a journal.

    Raises:
        ConfigurationError: the database cannot be used, or has a journal with entries.
        JournalError: the connection was lost, or the disk is full; nothing is written.
    """
    connection = _connect(url)
    try:
        prepare_schema(connection)
        return _write(source, connection)
    except _FindingsError as error:
        return error.report
    finally:
        connection.close()


class _FindingsError(Exception):
    """Report with findings, which ends the transaction without a commit."""

    def __init__(self, report: VerifyReport) -> None:
        super().__init__()
        self.report = report


def _write(source: Source, connection: PostgresConnection) -> VerifyReport:
    with connection:
        connection.execute("LOCK TABLE writers IN ACCESS EXCLUSIVE MODE")
        require_unused(connection)
        if connection.execute("SELECT 1 FROM entries LIMIT 1").fetchall():
            raise ConfigurationError(
                f"{connection.filename} holds a journal with entries already: choose another "
                "database or schema"
            )
        # What servers left that came and went without an entry, and what they were asked: an
        # errand must not delete a generation that comes now.
        for name in ("cursors", "leases", "writers", "errands", "taken_ids"):
            connection.execute(f"DELETE FROM {name}")  # noqa: S608 - constants only
        for table in list_tables():
            _copy(source, connection, table)
        report = verify_connection(connection)
        if not report.intact:
            raise _FindingsError(report)
    return report


def _copy(source: Source, connection: PostgresConnection, table: Table) -> None:
    names = ", ".join(f'"{name}"' for name, _ in table.columns)
    types = ["int8" if kind == "INTEGER" else "bytea" for _, kind in table.columns]
    sql = f"COPY {table.name} ({names}) FROM STDIN (FORMAT BINARY)"
    with translate_errors(), connection.raw.cursor() as cursor, cursor.copy(sql) as copy:
        copy.set_types(types)
        for row in source.read(table):
            copy.write_row(row)


def _connect(url: str, *, snapshots: bool = False) -> PostgresConnection:
    try:
        return PostgresConnection(url, snapshots=snapshots)
    except JournalError as error:
        raise ConfigurationError(
            f"the database cannot be used: {explain_for_operators(error)}"
        ) from error
