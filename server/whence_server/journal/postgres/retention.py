"""Retention's commands on a journal in PostgreSQL: the plan of a policy, and VACUUM."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from whence_server.domain.errors import ConfigurationError, JournalError
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

    def describe(self) -> Iterator[str]:
        """Yield the lines for people."""
        yield f"{spell_size(self.size_before)} before, {spell_size(self.size_after)} after"


def compact_database(url: str, *, full: bool = False) -> VacuumReport:
    """Make the space of deleted rows reusable, or give it back to the file system.

    Args:
        url: address of the database; servers may use it, unless `full` is set.
        full: whether to write the tables anew, which gives the space back. The tables of keys
            are written anew in any case: they are small, and old files hold destroyed keys.

    Raises:
        ConfigurationError: the database cannot be used, belongs to another user, or a server uses
            it and `full` is set.
    """
    with _connected(url) as connection:
        check_version(connection)
        if full:
            require_unused(connection)
        tables = [table.name for table in list_tables()] + ["leases", "errands", "taken_ids"]
        keys = [name for name in _KEYS if _exists(connection, name)]
        size_before = _measure(connection, tables + keys)
        for name in tables:
            connection.execute(f"VACUUM ({'FULL, ' if full else ''}ANALYZE) {name}")
        for name in keys:
            connection.execute(f"VACUUM (FULL, ANALYZE) {name}")
        return VacuumReport(size_before, _measure(connection, tables + keys))


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
