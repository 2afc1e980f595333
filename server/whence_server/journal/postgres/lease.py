"""Lease of a log: its holder alone may write to it.

A server that stops giving signs of life loses its lease after some seconds of the database's clock.
Another server takes the log over once it has seen the expired lease unchanged for as long again, by
a clock of its own: after an outage of the database every lease has expired, and all servers live.
Every transaction that writes locks the lease's row first,
and fails if the holder is another one: a server that was paused cannot write after it has lost its
log, and nobody takes a log over in the middle of a transaction.
"""

import secrets
import socket
import time
import uuid
from collections.abc import Sequence
from typing import NamedTuple

from whence_server.domain.errors import LeaseLostError
from whence_server.journal.postgres.connection import PostgresConnection

DEFAULT_LEASE_S = 10.0
"""Seconds without a sign of life after which another server may take a log over."""

_HOLDER_BYTES = 16
_NOBODY = b""
# A log that was copied here counts as given back with something left to do: it may have been copied
# while its server was running. A new one is taken in the same transaction.
_REGISTER = """
    INSERT INTO leases (writer, holder, expires_at)
    SELECT writer, ?, '-infinity' FROM writers ON CONFLICT DO NOTHING
"""
# A lease that was given back ends at '-infinity', whose only form in Python is its text.
_LIST_EXPIRED = """
    SELECT writer, holder, expires_at::text FROM leases
    WHERE holder IS NOT NULL AND writer <> ? AND expires_at < clock_timestamp()
"""
# A row that is locked belongs to a server that is writing.
_FIND_FREE = """
    SELECT w.writer, w.writer_id FROM writers w JOIN leases l ON l.writer = w.writer
    WHERE l.expires_at < clock_timestamp() AND w.writer <> ALL(?::bigint[]) AND (
        l.expires_at = '-infinity' AND (l.holder IS NOT NULL OR ? = 1)
        OR l.holder = ANY(?::bytea[])
        OR l.holder IS NULL AND EXISTS (
            SELECT 1 FROM errands e WHERE e.writer = l.writer AND e.outcome IS NULL))
    ORDER BY w.writer LIMIT 1 FOR UPDATE OF l SKIP LOCKED
"""
# The removal of all entries leaves one.
_LIST_IDLE = """
    SELECT l.writer FROM leases l
    WHERE l.holder IS NULL AND l.writer <> ?
        AND (SELECT count(*) FROM
            (SELECT 1 FROM entries e WHERE e.writer = l.writer LIMIT 2) AS it) > 1
    ORDER BY l.writer
"""
_FIND_IDLE = """
    SELECT w.writer, w.writer_id FROM writers w JOIN leases l ON l.writer = w.writer
    WHERE w.writer = ? AND l.holder IS NULL FOR UPDATE OF l SKIP LOCKED
"""
_TAKE = """
    UPDATE leases SET holder = ?, host = convert_from(?, 'UTF8'),
        expires_at = clock_timestamp() + ? * interval '1 microsecond'
    WHERE writer = ?
"""
_LOCK = "SELECT holder FROM leases WHERE writer = ? FOR UPDATE"
_RENEW = """
    UPDATE leases SET expires_at = clock_timestamp() + ? * interval '1 microsecond'
    WHERE writer = ? AND holder = ?
"""
_END_STALE = """
    SELECT pg_terminate_backend(a.pid) FROM leases l
    JOIN pg_stat_activity a ON a.application_name = 'whence-' || encode(l.holder, 'hex')
    WHERE l.writer <> ? AND l.expires_at < clock_timestamp() - ? * interval '1 microsecond'
        AND a.state <> 'idle' AND a.wait_event_type = 'Client'
        AND a.state_change < clock_timestamp() - ? * interval '1 microsecond'
"""
_EXPIRE = "UPDATE leases SET expires_at = '-infinity' WHERE writer = ? AND holder = ?"
_DROP = """
    UPDATE leases SET expires_at = '-infinity', holder = NULL WHERE writer = ? AND holder = ?
"""


class Lease(NamedTuple):
    """A server's hold on one log."""

    writer: int
    writer_id: bytes
    holder: bytes
    """A random number of this hold, 16 bytes: who takes the log again gets another one."""
    duration_s: float

    def lock(self, connection: PostgresConnection) -> None:
        """Lock the lease until the end of the transaction.

        Raises:
            LeaseLostError: another server holds it.
        """
        found = connection.execute(_LOCK, (self.writer,)).fetchall()
        if found != [(self.holder,)]:
            raise LeaseLostError

    def renew(self, connection: PostgresConnection) -> None:
        """Extend the lease from now on.

        Raises:
            LeaseLostError: another server holds it.
        """
        bindings = (_count_microseconds(self.duration_s), self.writer, self.holder)
        if not connection.execute(_RENEW, bindings).rowcount:
            raise LeaseLostError

    def end(self, connection: PostgresConnection, *, done: bool) -> None:
        """Give the lease back.

        Args:
            connection: writes to the database.
            done: whether nothing is left to do in the log; otherwise another server takes it over.
        """
        connection.execute(_DROP if done else _EXPIRE, (self.writer, self.holder))


class Silence:
    """Servers whose leases have expired, and since when this server sees them unchanged.

    Args:
        own: number of this server's own writer.
        duration_s: seconds for which a lease holds.
    """

    def __init__(self, own: int, duration_s: float) -> None:
        self._own = own
        self._duration_s = duration_s
        self._since: dict[tuple[int, bytes, str], float] = {}
        self._last_look = 0.0

    def list_silent(self, connection: PostgresConnection) -> list[bytes]:
        """Look, and return the holders that were silent for a whole lease.

        Raises:
            JournalError: the database is away; nobody can give a sign of life, and all silence
                begins anew.
        """
        before, self._since = self._since, {}
        rows = connection.execute(_LIST_EXPIRED, (self._own,)).fetchall()
        now = time.monotonic()
        if now - self._last_look > 2 * self._duration_s:
            before = {}  # The database may have been away meanwhile, or this server paused.
        self._last_look = now
        self._since = {tuple(row): before.get(tuple(row), now) for row in rows}
        return [
            holder
            for (_, holder, _), since in self._since.items()
            if now - since >= self._duration_s
        ]


def take_lease(connection: PostgresConnection, duration_s: float) -> Lease:
    """Take the lease of a log that was given back, or of a new log."""
    with connection:
        connection.execute(_REGISTER, (_NOBODY,))
        found = _take_free(connection, duration_s, idle=True)
        if found is not None:
            return found
        # Only one server at a time chooses a number.
        connection.execute("LOCK TABLE writers IN SHARE ROW EXCLUSIVE MODE")
        ((writer,),) = connection.execute("SELECT coalesce(max(writer), 0) + 1 FROM writers")
        connection.execute("INSERT INTO writers VALUES (?, ?)", (writer, uuid.uuid4().bytes))
        connection.execute(_REGISTER, (_NOBODY,))
        found = _take_free(connection, duration_s, idle=True)
        if found is None:
            raise LeaseLostError
        return found


def take_over(
    connection: PostgresConnection,
    skipped: Sequence[int],
    duration_s: float,
    silent: Sequence[bytes],
) -> Lease | None:
    """Take the lease of a log whose server died or left something to do; None if there is none.

    Args:
        connection: writes to the database.
        skipped: writers whose logs it does not take: this server's own, and those that it could
            not read.
        duration_s: seconds for which the lease holds.
        silent: holders that `Silence` lists.
    """
    with connection:
        return _take_free(connection, duration_s, idle=False, skipped=skipped, silent=silent)


def list_idle(connection: PostgresConnection, own: int) -> list[int]:
    """Return the writers of logs that no server holds and that have entries, but for one's own."""
    return [writer for (writer,) in connection.execute(_LIST_IDLE, (own,)).fetchall()]


def take_idle(connection: PostgresConnection, writer: int, duration_s: float) -> Lease | None:
    """Take the lease of a log that no server holds; None if a server has it by now."""
    with connection:
        found = connection.execute(_FIND_IDLE, (writer,)).fetchall()
        return _take(connection, found[0][0], found[0][1], duration_s) if found else None


def end_stale_sessions(connection: PostgresConnection, own: int, duration_s: float) -> None:
    """End the sessions of servers that stopped in the middle of a transaction.

    A server that is paused while it sends rows keeps its lease's row locked, and no timeout of
    PostgreSQL ends it. The database has waited for it for a whole lease: a server that lives sends
    on, however long its transaction is, and one that waits for the database is not meant. A session
    between two transactions locks nothing.

    Args:
        connection: asks for it; by the same user, or by one who may signal sessions.
        own: number of this server's own writer.
        duration_s: seconds for which a lease holds.
    """
    lease = _count_microseconds(duration_s)
    connection.execute(_END_STALE, (own, lease, lease))


def make_session_name(holder: bytes) -> str:
    """Return the application name of the session that writes under a lease."""
    return f"whence-{holder.hex()}"


def _take_free(
    connection: PostgresConnection,
    duration_s: float,
    *,
    idle: bool,
    skipped: Sequence[int] = (),
    silent: Sequence[bytes] = (),
) -> Lease | None:
    found = connection.execute(_FIND_FREE, (list(skipped), int(idle), list(silent))).fetchall()
    if not found:
        return None
    ((writer, writer_id),) = found
    return _take(connection, writer, writer_id, duration_s)


def _take(
    connection: PostgresConnection, writer: int, writer_id: bytes, duration_s: float
) -> Lease:
    holder = secrets.token_bytes(_HOLDER_BYTES)
    bindings = (holder, socket.gethostname(), _count_microseconds(duration_s), writer)
    connection.execute(_TAKE, bindings)
    return Lease(writer, writer_id, holder, duration_s)


def _count_microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
