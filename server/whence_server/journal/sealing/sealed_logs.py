"""Look-ups of a database that say which keys it needs."""

from typing import Any

from whence_server.journal.derive import PEEK_BYTES
from whence_server.journal.sealing.stored_form import peek_key_id

_NEWEST_START = f"""
    SELECT substr(e.payload, 1, {PEEK_BYTES}) FROM generations g
    LEFT JOIN entries e ON e.writer = g.writer AND e.position = g.started_position
    WHERE g.writer = ? AND g.deleted = 0 ORDER BY g.started_position DESC LIMIT 1
"""  # noqa: S608  # constants only


def has_sealed(connection: Any) -> bool:
    """Return whether the newest generation of any log is encrypted."""
    writers = connection.execute("SELECT writer FROM writers").fetchall()
    return any(is_sealed_log(connection, writer) for (writer,) in writers)


def is_sealed_log(connection: Any, writer: int) -> bool:
    """Return whether the newest generation of a log is encrypted: later ones always are."""
    found = connection.execute(_NEWEST_START, (writer,)).fetchall()
    return bool(found) and bool(peek_key_id(found[0][0] or b""))


def read_journal_id(connection: Any) -> bytes:
    """Return the id of the database's first log, by which its keys name the journal."""
    ((writer_id,),) = connection.execute(
        "SELECT writer_id FROM writers ORDER BY writer LIMIT 1"
    ).fetchall()
    return bytes(writer_id)
