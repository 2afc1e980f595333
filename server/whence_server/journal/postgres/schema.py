"""Tables of a journal in PostgreSQL: those of every journal, and those for several servers."""

import logging

from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import JournalError, JournalUnreachableError
from whence_server.journal.postgres.connection import PostgresConnection
from whence_server.journal.postgres.errors import explain_for_operators, translate_errors
from whence_server.journal.schema import migrate

_log = logging.getLogger(__name__)

# Any fixed number: servers that start at the same time take their turns.
_LOCK = 0x77686E6365
_SHARING = """
CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL);
INSERT INTO schema_version SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM schema_version);

-- A server may write to a log as long as it is the holder. Times are the database's own.
CREATE TABLE IF NOT EXISTS leases (
    writer BIGINT PRIMARY KEY,
    holder BYTEA, -- a random number of the server; NULL once nothing is left to do in the log
    host TEXT NOT NULL DEFAULT '', -- where the holder runs, for people
    expires_at TIMESTAMPTZ NOT NULL
);

-- Ids of generations that are about to start: servers cannot see each other's uncommitted ones.
CREATE TABLE IF NOT EXISTS taken_ids (
    generation_id BYTEA PRIMARY KEY,
    holder BYTEA NOT NULL,
    taken_at TIMESTAMPTZ NOT NULL
);
CREATE TABLE IF NOT EXISTS errands (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    writer BIGINT NOT NULL, -- of the log with the generation
    generation_id BYTEA NOT NULL,
    caller_id BYTEA NOT NULL,
    outcome BYTEA, -- NULL until it is done
    asked_at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX IF NOT EXISTS taken_ids_by_time ON taken_ids (taken_at);
"""


# SQLite's index ends with the position, which is part of its table's key; PostgreSQL's does not.
_INDEX_AUDIT = f"""
    CREATE INDEX entries_audit ON entries (writer, position)
    WHERE generation = 0 AND kind = {EntryKind.AUDIT:d}
"""


# The planner keeps samples of other columns, also after their rows are deleted.
_SAMPLED = """
    SELECT attrelid::regclass::text, attname::text FROM pg_attribute
    WHERE attrelid IN ('entries'::regclass, 'generations'::regclass)
        AND attname IN ('payload', 'secret', 'prompt_preview', 'text_preview', 'labels')
        AND coalesce(attstattarget, -1) <> 0
"""
_SAMPLES = """
    SELECT c.oid::regclass::text, s.attname::text FROM pg_stats s
    JOIN pg_class c ON c.relname = s.tablename
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = s.schemaname
    WHERE c.oid IN ('entries'::regclass, 'generations'::regclass)
        AND s.attname IN ('payload', 'secret', 'prompt_preview', 'text_preview', 'labels')
"""


def prepare_schema(connection: PostgresConnection) -> None:
    """Create the tables, or bring them up to date.

    Raises:
        ConfigurationError: a newer version wrote the database; nothing is changed.
        JournalError: the user may not create tables.
    """
    connection.execute("SELECT pg_advisory_lock(?)", (_LOCK,))
    try:
        with connection, translate_errors():
            connection.raw.execute(_SHARING)
        migrate(connection)
        _index_audit(connection)
        _keep_content_out_of_statistics(connection)
    finally:
        if not connection.is_broken:
            connection.execute("SELECT pg_advisory_unlock(?)", (_LOCK,))


def _index_audit(connection: PostgresConnection) -> None:
    """Create the index of the list of audit records."""
    # `IF NOT EXISTS` would first wait for all transactions that write.
    found = connection.execute("SELECT to_regclass('entries_audit') IS NOT NULL").fetchall()
    if found == [(False,)]:
        connection.execute(_INDEX_AUDIT)


def _keep_content_out_of_statistics(connection: PostgresConnection) -> None:
    """Let the planner sample no content, and drop the samples of earlier versions."""
    # Servers wait behind a statement that waits for a table, for example behind a backup.
    connection.execute("SELECT set_config('lock_timeout', '2s', false)")
    try:
        for table, column in connection.execute(_SAMPLED).fetchall():
            connection.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STATISTICS 0")
        for table, column in connection.execute(_SAMPLES).fetchall():
            # The type stays the same: no row is written anew, and the samples go.
            connection.execute(f"ALTER TABLE {table} ALTER COLUMN {column} TYPE BYTEA")
    except JournalUnreachableError:
        raise
    except JournalError as error:
        # The tables may belong to another role, or be in use.
        _log.warning(
            "PostgreSQL's statistics may hold samples of content: %s; the next start tries again, "
            "and the tables' owner can run ALTER TABLE ... SET STATISTICS 0",
            explain_for_operators(error),
        )
    if not connection.is_broken:
        connection.execute("SELECT set_config('lock_timeout', '0', false)")
