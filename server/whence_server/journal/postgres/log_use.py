"""Size of one log in PostgreSQL: counted once, then kept up to date by its only writer.

The tables have other logs too, and rows that are gone until VACUUM.
"""

import threading
from collections.abc import Callable
from typing import Any

from whence_server.journal.store import Batch

# Header, numbers and hash of a row, and its places in the two indexes.
_ROW_BYTES, _DIGEST_BYTES = 200, 32
_COUNT = """
    SELECT coalesce(max(position), 0), count(*),
        coalesce(sum(octet_length(coalesce(payload, inner_digest))), 0)::bigint
    FROM entries WHERE writer = ? AND position <= ?
"""
_CONTENT = """
    SELECT count(*), coalesce(sum(octet_length(payload)), 0)::bigint FROM entries
    WHERE writer = ? AND payload IS NOT NULL AND position < ? AND generation =
        (SELECT started_position FROM generations WHERE writer = ? AND generation_id = ?)
"""
_EVER = 2**62


class LogUse:
    """Bytes of a log's rows.

    Args:
        writer: number of the log's writer.
    """

    def __init__(self, writer: int) -> None:
        self._writer = writer
        self._counting = threading.Lock()
        self._lock = threading.Lock()
        self._total: int | None = None
        self._position = 0
        """Newest position that the count saw."""
        self._changes: list[tuple[int, int | None]] | None = None
        """Positions and changes of the transactions during a count."""

    def measure(self, read: Callable[..., Any]) -> int:
        """Return the number of bytes; count them if they are not known.

        Args:
            read: calls a function with a connection that sees one state of the database.
        """
        with self._counting:
            with self._lock:
                if self._total is not None:
                    return self._total
                self._changes = []
            try:
                position, total = read(count_log, self._writer)
            except BaseException:
                self._changes = None
                raise
            with self._lock:
                later = [change for place, change in self._changes if place > position]
                self._changes = None
                known = [change for change in later if change is not None]
                total += sum(known)
                if len(known) == len(later):
                    self._total, self._position = total, position
                return int(total)

    def compute_change(self, connection: Any, batch: Batch) -> int | None:
        """Return the change by a batch, before it is written; None if nobody asks for the size."""
        if self._total is None and self._changes is None:
            return None
        change = sum(len(entry.payload) + _ROW_BYTES for entry in batch.entries)
        change += sum(len(entry.payload) + _ROW_BYTES for entry in batch.outside)
        for generation_id, before in batch.deleted:
            bindings = (self._writer, before, self._writer, generation_id)
            ((number, num_bytes),) = connection.execute(_CONTENT, bindings).fetchall()
            change -= num_bytes - number * _DIGEST_BYTES
        if batch.removed is not None:
            change -= count_log(connection, self._writer, batch.removed.position)[1]
        return change

    def note(self, position: int, change: int | None) -> None:
        """Note the change by a transaction that was committed.

        Args:
            position: position of its last entry; 0 if it has none.
            change: the change; None if it is unknown.
        """
        if not position:
            return
        with self._lock:
            if self._changes is not None:
                self._changes.append((position, change))
            elif change is None:
                self._total = None
            elif self._total is not None and position > self._position:
                self._total += change


def count_log(connection: Any, writer: int, last: int = _EVER) -> tuple[int, int]:
    """Return the newest position of a log up to one, and the bytes of its rows up to it."""
    ((position, number, num_bytes),) = connection.execute(_COUNT, (writer, last)).fetchall()
    return position, num_bytes + number * _ROW_BYTES
