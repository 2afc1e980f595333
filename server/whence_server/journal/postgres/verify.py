"""Verification of a journal in PostgreSQL, also while servers write to it."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial

from whence_server.domain.errors import ConfigurationError, JournalError
from whence_server.journal.audit import run_stage
from whence_server.journal.findings import VerifyReport
from whence_server.journal.postgres.connection import PostgresConnection
from whence_server.journal.postgres.errors import explain_for_operators
from whence_server.journal.rebuild import rebuild_rows
from whence_server.journal.schema import MIGRATIONS
from whence_server.journal.schema_check import check_writers
from whence_server.journal.sealing.content_check import KeysToVerify
from whence_server.journal.tree_verify import report_missing_log, verify_tree
from whence_server.journal.verify import check_keys, verify_logs

_DELETED = "SELECT deleted FROM generations WHERE generation_id = ?"
_PATIENCE_S = 2.0
_LIVE = """
    SELECT host FROM leases WHERE holder IS NOT NULL AND expires_at > clock_timestamp() LIMIT 1
"""
_ANYTHING = "(SELECT 1 FROM writers LIMIT 1) UNION ALL (SELECT 1 FROM entries LIMIT 1)"


def verify_database(
    url: str, keys: KeysToVerify | None = None, known: Sequence[bytes] = ()
) -> VerifyReport:
    """Verify every log in one state of a database; change nothing.

    Args:
        url: address of the database.
        keys: keys of the encrypted generations; None to leave their content encrypted.
        known: checkpoints of its transparency log that were kept elsewhere.

    Raises:
        ConfigurationError: the database cannot be read, holds no journal, a newer version wrote
            it, the keys are those of another journal, or a known checkpoint is malformed.
        JournalUnwritableError: the connection was lost.
    """
    with closing(_connect(url, snapshots=True)) as connection, closing(_connect(url)) as present:
        if keys is not None:
            # Servers go on, and delete what this state still has.
            keys.is_deleted = partial(_is_deleted, present)
            keys.patience_s = _PATIENCE_S
        with connection:
            return verify_connection(connection, keys, known)


def _is_deleted(connection: PostgresConnection, generation_id: str) -> bool:
    found = connection.execute(_DELETED, (generation_id,)).fetchall()
    return not found or bool(found[0][0])


def verify_connection(
    connection: PostgresConnection,
    keys: KeysToVerify | None = None,
    known: Sequence[bytes] = (),
) -> VerifyReport:
    """Verify every log that a transaction sees; raise as `verify_database` does."""
    version = check_version(connection)
    report = VerifyReport()
    if connection.execute(_ANYTHING).fetchall():
        check_writers(connection, report)
        if keys is not None:
            check_keys(connection, keys)
        verify_logs(connection, report, version, keys)
        run_stage(report, "transparency log", lambda: verify_tree(connection, report, known))
    else:
        report_missing_log(report, known)
    return report


def rebuild_database(url: str) -> int:
    """Rebuild the rows that differ from their entries, as `rebuild_journal`; return their number.

    Raises:
        ConfigurationError: the database cannot be used, or a server uses it.
        JournalError: the connection was lost; nothing is changed.
    """
    connection = _connect(url)
    try:
        with connection:
            connection.execute("SET LOCAL lock_timeout = '5s'")
            connection.execute("LOCK TABLE leases IN EXCLUSIVE MODE")
            require_unused(connection)
            return rebuild_rows(connection)
    finally:
        connection.close()


def require_unused(connection: PostgresConnection) -> None:
    """Refuse a database that a server uses.

    Raises:
        ConfigurationError: one does.
    """
    for (host,) in connection.execute(_LIVE).fetchall():
        raise ConfigurationError(
            f"a server on {host} is using {connection.filename}: stop all servers first"
        )


def _connect(url: str, *, snapshots: bool = False) -> PostgresConnection:
    try:
        return PostgresConnection(url, snapshots=snapshots)
    except JournalError as error:
        raise ConfigurationError(
            f"the database of --journal cannot be used: {explain_for_operators(error)}"
        ) from error


def check_version(connection: PostgresConnection) -> int:
    """Return the version of a database's schema.

    Raises:
        ConfigurationError: it holds no journal, or one of another version.
    """
    ((found,),) = connection.execute("SELECT to_regclass('schema_version') IS NOT NULL").fetchall()
    if not found:
        raise ConfigurationError(f"{connection.filename} holds no journal")
    version = connection.pragma("user_version")
    if version != len(MIGRATIONS):
        raise ConfigurationError(
            f"{connection.filename} has schema version {version}, and this program supports "
            f"{len(MIGRATIONS)}: start the server of the newer one of the two versions on it once"
        )
    return version
