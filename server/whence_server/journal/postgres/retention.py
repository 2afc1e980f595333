"""Retention's commands on a journal in PostgreSQL: the plan of a policy, and VACUUM."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg.errors import Diagnostic, LockNotAvailable

from whence_server.domain.errors import (
    ConfigurationError,
    JournalError,
    JournalUnwritableError,
)
from whence_server.domain.retention import RetentionPolicy, spell_size
from whence_server.journal.moving.tables import list_tables
from whence_server.journal.postgres.connection import PostgresConnection
from whence_server.journal.postgres.errors import explain_for_operators
from whence_server.journal.postgres.log_use import count_log
from whence_server.journal.postgres.verify import check_version, require_unused
from whence_server.journal.retention.dry_run import Plan, make_plan, require_readable_labels
from whence_server.journal.retention.spelling import spell_policy
from whence_server.journal.sealing.content_check import KeysToVerify

_SIZE = "SELECT coalesce(sum(pg_total_relation_size(to_regclass(it::text))), 0)::bigint FROM "
_LOGS = "SELECT writer, encode(writer_id, 'hex') FROM writers ORDER BY writer"
_KEYS = ("data_keys", "facts")
_USERS = """
    SELECT DISTINCT l.pid::bigint, a.application_name FROM pg_locks l
    JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.relation = to_regclass(convert_from(?, 'UTF8')) AND l.granted
        AND l.pid <> pg_backend_pid()
"""
_LONGEST_WAIT_S, _PAUSE_S = 60.0, 1.0


def plan_database(
    url: str, policy: RetentionPolicy, keys: KeysToVerify | None = None
) -> dict[str, Plan]:
    """Judge every generation of a database by a policy; servers may use it.

    Args:
        url: address of the database.
        policy: the policy, with labels in clear.
        keys: keys of a journal whose labels are encrypted.

    Returns:
        A plan for each log, by its id in hex.

    Raises:
        ConfigurationError: it cannot be read, or its labels need keys.
    """
    if keys is not None:
        policy = spell_policy(policy, keys.spell_label)
    with _connected(url, snapshots=True) as connection, connection:
        check_version(connection)
        require_readable_labels(connection, policy, keys)
        return {
            log_id: make_plan(connection, writer, policy, count_log(connection, writer)[1])
            for writer, log_id in connection.execute(_LOGS).fetchall()
        }


@dataclass(frozen=True, slots=True)
class VacuumReport:
    """Result of a compaction; sizes in bytes, with indexes, of the tables of all logs and keys."""

    size_before: int
    size_after: int
    has_keys: bool
    """True if the tables of keys are in this database; they were written anew."""

    def describe(self) -> Iterator[str]:
        """Yield the lines for people."""
        yield f"{spell_size(self.size_before)} before, {spell_size(self.size_after)} after"
        if self.has_keys:
            yield "the tables of keys are written anew: no file of them holds a destroyed key"
        else:
            yield (
                "no keys are in this database: if --journal-keys names another one, run `VACUUM "
                "FULL data_keys` there"
            )


def compact_database(url: str, *, full: bool = False) -> VacuumReport:
    """Make the space of deleted rows reusable, or give it back to the file system.

    Args:
        url: address of the database; servers may use it, unless `full` is set.
        full: whether to write the tables anew, which gives the space back. The tables of keys
            are written anew in any case: they are small, and old files hold destroyed keys.

    Raises:
        ConfigurationError: the database cannot be used, PostgreSQL leaves a table as it is
            because it belongs to another user, another session keeps the tables of keys in use,
            or a server uses the database and `full` is set.
    """
    with _connected(url) as connection:
        check_version(connection)
        if full:
            require_unused(connection)
        tables = [table.name for table in list_tables()] + ["leases", "errands", "taken_ids"]
        keys = [name for name in _KEYS if _exists(connection, name)]
        size_before = _measure(connection, tables + keys)
        warnings = _collect_warnings(connection)
        for name in tables:
            connection.execute(f"VACUUM ({'FULL, ' if full else ''}ANALYZE) {name}")
        for name in keys:
            _rewrite(connection, name)
        # PostgreSQL skips the tables of others, and calls that a success.
        if warnings:
            raise ConfigurationError(
                f"the database is not compacted: {warnings[0]}; run this command as the owner of "
                "the journal's tables"
            )
        return VacuumReport(size_before, _measure(connection, tables + keys), bool(keys))


def _collect_warnings(connection: PostgresConnection) -> list[str]:
    """Return a list to which the texts of PostgreSQL's warnings are added from now on."""
    warnings: list[str] = []

    def note(diagnostic: Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.message_primary or "")

    connection.execute("SELECT set_config('client_min_messages', 'warning', false)")
    connection.raw.add_notice_handler(note)
    return warnings


def _rewrite(connection: PostgresConnection, name: str) -> None:
    """Write a table anew; servers that use it wait for a moment at most.

    Who waits for the table's lock lets nobody pass, so a long transaction of a third session, a
    backup's for example, would stop every server.

    Raises:
        ConfigurationError: another session keeps the table in use.
    """
    give_up_s = time.monotonic() + _LONGEST_WAIT_S
    connection.execute("SELECT set_config('lock_timeout', '2s', false)")
    while True:
        try:
            connection.execute(f"VACUUM (FULL, ANALYZE) {name}")
        except JournalUnwritableError as error:
            if not isinstance(error.__cause__, LockNotAvailable):
                raise
            if time.monotonic() >= give_up_s:
                users = connection.execute(_USERS, (name,)).fetchall()
                listed = ", ".join(f"{pid} ({who or 'without a name'})" for pid, who in users)
                raise ConfigurationError(
                    f"table {name} cannot be written anew while other sessions use it: "
                    f"{listed or 'they have just ended'}; run this command again after them"
                ) from None
            time.sleep(_PAUSE_S)
        else:
            return


def _exists(connection: PostgresConnection, name: str) -> bool:
    found = connection.execute("SELECT to_regclass(convert_from(?, 'UTF8')) IS NOT NULL", (name,))
    return bool(found.fetchall()[0][0])


def _measure(connection: PostgresConnection, names: list[str]) -> int:
    listed = ", ".join(f"('{name}')" for name in names)
    ((size,),) = connection.execute(f"{_SIZE} (VALUES {listed}) AS names (it)").fetchall()
    return int(size)


@contextmanager
def _connected(url: str, *, snapshots: bool = False) -> Iterator[PostgresConnection]:
    try:
        connection = PostgresConnection(url, snapshots=snapshots)
        try:
            yield connection
        finally:
            connection.close()
    except JournalError as error:
        raise ConfigurationError(
            f"the database of --journal cannot be used: {explain_for_operators(error)}"
        ) from error
