"""Verification of a journal in PostgreSQL, also while servers write to it."""

from whence_server.domain.errors import ConfigurationError, JournalError
from whence_server.journal.findings import VerifyReport
from whence_server.journal.postgres.connection import PostgresConnection
from whence_server.journal.postgres.errors import explain_for_operators
from whence_server.journal.schema import MIGRATIONS
from whence_server.journal.schema_check import check_writers
from whence_server.journal.verify import verify_logs

_ANYTHING = "(SELECT 1 FROM writers LIMIT 1) UNION ALL (SELECT 1 FROM entries LIMIT 1)"


def verify_database(url: str) -> VerifyReport:
    """Verify every log in one state of a database; change nothing.

    Raises:
        ConfigurationError: the database cannot be read, holds no journal, or a newer version wrote
            it.
        JournalUnwritableError: the connection was lost.
    """
    try:
        connection = PostgresConnection(url, snapshots=True)
    except JournalError as error:
        raise ConfigurationError(
            f"the database of --journal cannot be read: {explain_for_operators(error)}"
        ) from error
    try:
        with connection:
            return verify_connection(connection)
    finally:
        connection.close()


def verify_connection(connection: PostgresConnection) -> VerifyReport:
    """Verify every log that a transaction sees; raise as `verify_database` does."""
    version = check_version(connection)
    report = VerifyReport()
    if connection.execute(_ANYTHING).fetchall():
        check_writers(connection, report)
        verify_logs(connection, report, version)
    return report


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
