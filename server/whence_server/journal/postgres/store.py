"""The journal's tables in a PostgreSQL database."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, Concatenate, ParamSpec, TypeVar

from whence_server.domain.entries import Entry
from whence_server.domain.errors import (
    ConfigurationError,
    GenerationExistsError,
    JournalError,
    JournalUnreachableError,
    JournalUnwritableError,
)
from whence_server.journal.chain import hash_genesis
from whence_server.journal.postgres import errands
from whence_server.journal.postgres.connection import PostgresConnection, close_on_error
from whence_server.journal.postgres.errors import explain_for_operators, translate_errors
from whence_server.journal.postgres.lease import (
    DEFAULT_LEASE_S,
    Lease,
    Silence,
    end_stale_sessions,
    list_idle,
    make_session_name,
    take_idle,
    take_lease,
    take_over,
)
from whence_server.journal.postgres.listening import Listener
from whence_server.journal.postgres.log_use import LogUse
from whence_server.journal.postgres.reachability import Reachability
from whence_server.journal.postgres.schema import prepare_schema
from whence_server.journal.retention.sql_queries import find_newest_start_anywhere
from whence_server.journal.retention.sql_retention import SqlRetention
from whence_server.journal.sharing.store import Change, Errand
from whence_server.journal.sql_lookup import find_place
from whence_server.journal.sql_reads import LOGS, SqlReads, read_log
from whence_server.journal.sql_writes import write_batch
from whence_server.journal.store import Batch, LogEnd, NewEntry, State

_log = logging.getLogger(__name__)

# In transactions that write entries, besides those of `renew`.
_RENEWALS_PER_LEASE = 10

P = ParamSpec("P")
T = TypeVar("T")

# By name: a newer server may have added columns, during a rolling update.
_COPY = (
    'COPY entries (writer, position, generation, "offset", kind, payload, inner_digest, hash) '
    "FROM STDIN (FORMAT BINARY)"
)
_COPIED_TYPES = ("int8", "int8", "int8", "int8", "int8", "bytea", "bytea", "bytea")
_LAST = "SELECT position, hash FROM entries WHERE writer = ? ORDER BY position DESC LIMIT 1"
_SIZE = """
    SELECT coalesce(sum(pg_total_relation_size(name::regclass)), 0)::bigint
    FROM unnest(array['entries', 'generations', 'labels', 'owners', 'parents', 'cursors']) AS name
"""
# Whoever has no lease any more commits nothing, and its ids are free.
_TAKE_ID = """
    INSERT INTO taken_ids SELECT ?, ?, clock_timestamp()
    WHERE NOT EXISTS (SELECT 1 FROM generations WHERE generation_id = ?)
    ON CONFLICT (generation_id) DO UPDATE
    SET taken_at = excluded.taken_at, holder = excluded.holder
    WHERE taken_ids.holder = excluded.holder
        OR NOT EXISTS (SELECT 1 FROM leases l WHERE l.holder = taken_ids.holder)
"""
_BOUND_WAITING = """
    SELECT set_config('lock_timeout', '5s', true),
        set_config('idle_in_transaction_session_timeout', '10s', true)
"""
_RELEASE_ID = "DELETE FROM taken_ids WHERE generation_id = ? AND holder = ?"
# A commit follows an id by seconds at most; while the database is away, by as long. An id whose
# generation is on record is taken by its row.
_FORGET_IDS = """
    DELETE FROM taken_ids t WHERE t.taken_at < clock_timestamp() - interval '1 hour' AND (
        EXISTS (SELECT 1 FROM generations g WHERE g.generation_id = t.generation_id)
        OR NOT EXISTS (SELECT 1 FROM leases l WHERE l.holder = t.holder)
        OR t.taken_at < clock_timestamp() - interval '1 day')
"""


class PostgresStore(SqlReads, SqlRetention):
    """One writer's log in a database with others: a session that writes, one for each reader.

    Attributes:
        lease: the hold on the log.
        lease_s: seconds without `renew` after which another server takes the log over.
    """

    def __init__(
        self, url: str, lease_s: float = DEFAULT_LEASE_S, lease: Lease | None = None
    ) -> None:
        """Connect, bring the schema up to date, and take a log that no server holds.

        Args:
            url: address of the database.
            lease_s: seconds without a sign of life after which another server takes the log.
            lease: hold on a log that was taken before; None takes one.

        Raises:
            ConfigurationError: the database cannot be reached or used, or is of a newer version.
        """
        self._url = url
        self._local = threading.local()
        self._readers: list[PostgresConnection] = []
        self._readers_lock = threading.Lock()
        self._reachability = Reachability()
        self._connection: PostgresConnection | None = None
        self._size = 0
        try:
            connection = PostgresConnection(url)
            with close_on_error(connection):
                if lease is None:
                    # Without a limit for locks: another server may be migrating a large database.
                    prepare_schema(connection)
                _set_limits(connection, lease_s)
                if lease is None:
                    lease = take_lease(connection, lease_s)
                self.lease, self.lease_s = lease, lease_s
                self._name_session(connection)
        except JournalError as error:
            raise ConfigurationError(
                f"the database of --journal cannot be used: {explain_for_operators(error)}"
            ) from error
        self._connection = connection
        self.writer, self.writer_id = lease.writer, lease.writer_id
        self._unused_ids: set[str] = set()
        self._unused_lock = threading.Lock()
        self._silence = Silence(lease.writer, lease_s)
        self._use = LogUse(lease.writer)
        self._renewed_s = time.monotonic()
        self._last = (0, hash_genesis(self.writer_id))
        """Position and hash of the newest entry that is known to be committed."""
        self._in_doubt = False
        """True after a failed transaction, whose commit may have arrived all the same."""

    @property
    def size_bytes(self) -> int:
        """Size of the tables of all logs with their indexes, as it was at the last renewal."""
        return self._size

    # ---- the writer's thread ----

    def write(self, batch: Batch) -> None:
        """Commit a batch; the database has it on disk then, whatever the durability.

        Raises:
            JournalUnwritableError: the database is away, full or busy; the batch may be tried
                again.
            LeaseLostError: another server has taken the log over.
            JournalError: the database has lost entries.
        """
        last = _get_last(batch) or self._last
        change: int | None = None
        started_s = time.monotonic()
        is_due = started_s - self._renewed_s > self.lease_s / _RENEWALS_PER_LEASE
        try:
            connection = self._get_writer()
            with connection:
                self.lease.lock(connection)
                if not self._in_doubt or self._check_place(connection, last):
                    change = self._use.compute_change(connection, batch)
                    write_batch(connection, self.writer, batch, self._copy_entries)
                    if batch.last_position:
                        errands.notify(connection, "whence_entries", self.writer)
                # Each renewal leaves an old row, which every lock of the row has to pass.
                if is_due:
                    self.lease.renew(connection)
        except BaseException:
            self._in_doubt = True
            raise
        self._last, self._in_doubt = last, False
        self._use.note(batch.last_position, change)
        if is_due:
            self._renewed_s = started_s

    def _check_place(self, connection: PostgresConnection, last: tuple[int, bytes]) -> bool:
        """Return False if the batch that ends with an entry was committed after all.

        Raises:
            JournalError: the database ends elsewhere: it is a standby that lacked the newest
                entries, or an old backup.
        """
        found = connection.execute(_LAST, (self.writer,)).fetchall()
        place = found[0] if found else (0, hash_genesis(self.writer_id))
        if place == self._last:
            return True
        if place == last:
            return False
        raise JournalError(
            f"the database ends at entry {place[0]} of this server's log, and entry "
            f"{self._last[0]} was committed: it has lost entries, as an asynchronous standby or an "
            "old backup has; the next start continues from there"
        )

    def _copy_entries(self, entries: Iterable[NewEntry]) -> None:
        writer = self.writer
        connection = self._get_writer()
        with translate_errors(), connection.raw.cursor() as cursor, cursor.copy(_COPY) as copy:
            copy.set_types(_COPIED_TYPES)
            write_row = copy.write_row
            for position, generation, offset, kind, payload, entry_hash in entries:
                write_row(
                    (writer, position, generation, offset, int(kind), payload, None, entry_hash)
                )

    def renew(self) -> None:
        """Extend the lease, and do what is due from time to time.

        Raises:
            JournalUnwritableError: the database is away or busy.
            LeaseLostError: another server has taken the log over.
        """
        connection = self._get_writer()
        with connection:
            self.lease.lock(connection)
            self.lease.renew(connection)
        self._release_unused(connection)
        connection.execute(_FORGET_IDS)
        connection.execute(errands.FORGET_OLD)
        ((self._size,),) = connection.execute(_SIZE)

    def end_lease(self) -> None:
        """Give the log back, in which nothing is left to do.

        Raises:
            JournalUnwritableError: the database is away or busy.
        """
        self.lease.end(self._get_writer(), done=True)

    def truncate_log(self) -> bool:
        """Return True: deleted content is out of the tables once its transaction is committed."""
        return True

    def _get_writer(self) -> PostgresConnection:
        if self._connection is None or self._connection.is_broken:
            self._in_doubt = True
            self._connection = None
            connection = PostgresConnection(self._url)
            with close_on_error(connection):
                _set_limits(connection, self.lease.duration_s)
                self._name_session(connection)
            self._connection = connection
        return self._connection

    def _name_session(self, connection: PostgresConnection) -> None:
        """Give the session a name by which others can end it once the lease has expired."""
        connection.execute(
            "SELECT set_config('application_name', convert_from(?, 'UTF8'), false)",
            (make_session_name(self.lease.holder),),
        )

    # ---- any thread ----

    def load_state(self) -> State:
        """Read the state of the log."""
        state = super().load_state()
        self._last = (state.position, state.hash)
        return state

    def take_id(self, generation_id: str) -> None:
        """Take an id for a new generation, where other servers see it.

        Raises:
            GenerationExistsError: it was used before, or another server has taken it.
            JournalUnreachableError: the database is away.
        """
        with self._unused_lock:
            self._unused_ids.discard(generation_id)
        try:
            taken = self._take_id(generation_id)
        except JournalError:
            self.release_later(generation_id)  # It may have been committed all the same.
            raise
        if not taken:
            row = self.find_generation(generation_id)
            raise GenerationExistsError(generation_id, deleted=row is not None and row.deleted)

    def _take_id(self, generation_id: str) -> int:
        """Insert the row of an id; return the number of rows."""
        bindings = (generation_id, self.lease.holder, generation_id)
        try:
            return int(self._get_session().execute(_TAKE_ID, bindings).rowcount)
        except JournalUnreachableError:
            # The session may have ended long ago, while nobody used it.
            return int(self._get_session().execute(_TAKE_ID, bindings).rowcount)

    def release_id(self, generation_id: str) -> None:
        """Give an id back, so that the caller can use it at another server at once.

        Raises:
            JournalError: the database is away; a later renewal of the lease gives it back.
        """
        try:
            connection = self._get_session()
            connection.execute(_RELEASE_ID, (generation_id, self.lease.holder))
        except JournalError:
            self.release_later(generation_id)
            raise

    def release_later(self, generation_id: str) -> None:
        """Give an id back with the next renewal of the lease, unless it is taken again."""
        with self._unused_lock:
            self._unused_ids.add(generation_id)

    def _release_unused(self, connection: PostgresConnection) -> None:
        # The lock holds `take_id` off: an id that is taken again must not be given back.
        with self._unused_lock:
            for generation_id in self._unused_ids:
                connection.execute(_RELEASE_ID, (generation_id, self.lease.holder))
            self._unused_ids.clear()

    def change_tree(self, change: Callable[[Any], T]) -> T:
        """Call a function with this thread's session, in one transaction, as `Store` says."""
        with self._get_session() as connection:
            # Servers wait for each other here, and none for one that is paused in between.
            connection.execute(_BOUND_WAITING)
            return change(connection)

    def find_writer(self, generation_id: str) -> int:
        """Return the number of the writer of a generation's log.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """
        return self._read(find_place, generation_id).writer

    def listen(self, on_change: Callable[[Change], None]) -> Callable[[], None]:
        """Call a function, in a thread, after each change by others; return what ends it."""
        return Listener(self._url, self.writer, on_change).stop

    def ask_deletion(self, writer: int, generation_id: str, caller_id: str) -> int:
        """Ask the holder of a log to delete a generation; return the errand's number."""
        return errands.ask_deletion(self._get_session(), writer, generation_id, caller_id)

    def list_errands(self) -> list[Errand]:
        """Return what others ask of the holder of this log."""
        return errands.list_errands(self._get_session(), self.writer)

    def end_errand(self, number: int, outcome: str) -> None:
        """Answer an errand of this log."""
        errands.end_errand(self._get_session(), number, outcome)

    def read_outcome(self, number: int) -> str | None:
        """Return the answer to an errand; None if there is none yet."""
        return errands.read_outcome(self._get_session(), number)

    def forget_errand(self, number: int) -> None:
        """Remove an errand that was answered, or that nobody waits for any more."""
        errands.forget_errand(self._get_session(), number)

    def list_logs(self) -> list[LogEnd]:
        """Return every log with the position of its newest committed entry."""
        return [LogEnd(*row) for row in self._get_session().execute(LOGS).fetchall()]

    def read_log(
        self, writer: int, after_position: int, *, limit: int, max_bytes: int
    ) -> list[Entry]:
        """Read entries of all kinds of one log by position, up to either bound."""
        return self._read(read_log, writer, after_position, limit, max_bytes)

    def take_over(self, skipped: Collection[int] = ()) -> "PostgresStore | None":
        """Take a log whose server died or left something to do, but for some writers."""
        session = self._get_session()
        silent = self._silence.list_silent(session)
        try:
            end_stale_sessions(session, self.writer, self.lease_s)
        except JournalUnwritableError:
            raise
        except JournalError as error:
            _log.warning("the session of a paused server cannot be ended: %s", error)
        return self._join(take_over(session, (self.writer, *skipped), self.lease_s, silent))

    def list_idle_logs(self) -> list[int]:
        """Return the writers of logs that no server holds and that have entries."""
        return list_idle(self._get_session(), self.writer)

    def take_idle(self, writer: int) -> "PostgresStore | None":
        """Take a log that no server holds; None if a server has it by now."""
        return self._join(take_idle(self._get_session(), writer, self.lease_s))

    def _join(self, lease: Lease | None) -> "PostgresStore | None":
        return None if lease is None else PostgresStore(self._url, self.lease_s, lease)

    def find_newest_start(self) -> int | None:
        """Return the newest start time of a generation in all logs: that of a new server is empty.

        A server judges the ages of generations in the logs of others too.
        """
        return self._read(find_newest_start_anywhere)

    def measure_use(self) -> int:
        """Return the size of this log's rows, in bytes."""
        return self._use.measure(self._read)

    def close(self) -> None:
        """Give the lease back, and end every session."""
        if self._connection is not None and not self._connection.is_broken:
            with suppress(JournalError):
                self.lease.end(self._connection, done=False)
            self._connection.close()
        for connection in self._readers:
            connection.close()

    def _read(
        self, function: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            with self._get_reader() as connection:
                return function(connection, *args, **kwargs)
        except JournalUnreachableError:
            # The session may have ended long ago, while nobody used it.
            with self._get_reader() as connection:
                return function(connection, *args, **kwargs)

    def _get_session(self) -> PostgresConnection:
        """Return a session of this thread whose statements are transactions of their own."""
        return self._get_reader(snapshots=False)

    def _get_reader(self, *, snapshots: bool = True) -> PostgresConnection:
        name = "snapshots" if snapshots else "statements"
        connection: PostgresConnection | None = getattr(self._local, name, None)
        if connection is None or connection.is_broken:
            connection = self._reachability.connect(
                lambda: PostgresConnection(self._url, snapshots=snapshots)
            )
            if not snapshots:
                with close_on_error(connection):
                    # An id that a crash of the database forgets could begin in two logs.
                    connection.execute("SELECT set_config('synchronous_commit', 'on', false)")
            setattr(self._local, name, connection)
            with self._readers_lock:
                self._readers = [kept for kept in self._readers if not kept.is_broken]
                self._readers.append(connection)
        return connection


def _set_limits(connection: PostgresConnection, lease_s: float) -> None:
    """Set the limits of a session that writes."""
    # The database ends the transaction of a server that is paused in the middle of it.
    connection.execute(
        "SELECT set_config('idle_in_transaction_session_timeout', "
        "convert_from(?, 'UTF8'), false), set_config('lock_timeout', '5s', false), "
        "set_config('synchronous_commit', 'on', false)",
        (f"{round(lease_s * 1_000)}ms",),
    )


def _get_last(batch: Batch) -> tuple[int, bytes] | None:
    """Return position and hash of a batch's last entry; None if it has none."""
    ends = [(rows[-1].position, rows[-1].hash) for rows in (batch.entries, batch.outside) if rows]
    return max(ends, default=None)
