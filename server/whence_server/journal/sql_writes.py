"""Writing a batch within a transaction, in SQL of both databases."""

from collections.abc import Callable, Iterable
from typing import Any

from whence_server.journal import cursors, label_index
from whence_server.journal.chain import digest_payload
from whence_server.journal.label_index import make_label_rows
from whence_server.journal.origin import remove_entries
from whence_server.journal.search.passages import Place, delete_passages
from whence_server.journal.sql_rows import INDEX_COLUMNS, bind_finish, bind_generation
from whence_server.journal.store import Batch, NewEntry
from whence_server.journal.value_index import OWNERS, PARENTS

_INSERT_GENERATION = f"""
    INSERT INTO generations (writer, started_position, secret, {INDEX_COLUMNS})
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608  # constants only
_INSERT_OUTSIDE = """
    INSERT INTO entries VALUES (
        ?, ?,
        coalesce(
            (SELECT started_position FROM generations WHERE writer = ? AND generation_id = ?), 0),
        0, ?, ?, NULL, ?
    )
"""
_INSERT_DESTROYED = "INSERT INTO entries VALUES (?, ?, ?, ?, ?, NULL, ?, ?)"
_FINISH = """
    UPDATE generations SET finish_reason = ?, num_generated_tokens = ?, text_preview = ?
    WHERE generation_id = ?
"""
_BURY = """
    UPDATE generations SET secret = NULL, trace_id = '', model = '', start_time_ns = 0,
        request_digest = '', labels = '{}', prompt_preview = '', num_prompt_tokens = 0,
        finish_reason = 0, num_generated_tokens = 0, text_preview = '', deleted = 1
    WHERE generation_id = ?
"""


def write_batch(
    connection: Any,
    writer: int,
    batch: Batch,
    insert_entries: Callable[[Iterable[NewEntry]], None],
) -> None:
    """Write a batch of a writer's log; the caller begins and ends the transaction.

    Args:
        connection: writes to the database.
        writer: number of the log's writer.
        batch: the batch.
        insert_entries: inserts entries of generations, in the fastest way of the database.
    """
    if batch.generations:
        connection.executemany(
            _INSERT_GENERATION, ((writer, *bind_generation(new)) for new in batch.generations)
        )
    for new in batch.generations:
        index = new.index
        rows = list(make_label_rows(index.generation_id, index.start_time_ns, index.labels))
        if rows:
            connection.executemany(label_index.INSERT, rows)
        for values, value in ((OWNERS, index.owner), (PARENTS, index.parent)):
            if value:
                row = values.bind(value, index.start_time_ns, index.generation_id)
                connection.execute(values.insert, row)
    if batch.entries:
        insert_entries(batch.entries)
    if batch.outside:
        connection.executemany(
            _INSERT_OUTSIDE,
            (
                (writer, position, writer, generation_id, kind, payload, entry_hash)
                for position, generation_id, kind, payload, entry_hash in batch.outside
            ),
        )
    if batch.finished:
        connection.executemany(_FINISH, map(bind_finish, batch.finished))
    for generation_id, before in batch.deleted:
        _destroy(connection, writer, generation_id, before)
    if batch.removed is not None:
        remove_entries(connection, writer, batch.removed)
        cursors.move_to_origin(connection, writer, batch.removed.position)
    cursors.advance(connection, writer, batch.cursors)


def _destroy(connection: Any, writer: int, generation_id: str, before: int) -> None:
    """Destroy the content of a generation's entries before a position."""
    found = connection.execute(
        "SELECT started_position, secret FROM generations WHERE writer = ? AND generation_id = ?",
        (writer, generation_id),
    ).fetchall()
    if not found:
        return  # A damaged row must not make the whole batch fail.
    ((generation, secret),) = found
    rows = connection.execute(
        'SELECT position, "offset", kind, payload, hash '
        "FROM entries INDEXED BY entries_by_generation WHERE writer = ? "
        "AND generation = ? AND payload IS NOT NULL AND position < ? ORDER BY position",
        (writer, generation, before),
    ).fetchall()
    # SQLite merges no pages whose rows shrink: an update would leave the file as large as it is.
    # Rows that go and come back are packed, in order.
    if rows:
        connection.execute(
            "DELETE FROM entries INDEXED BY entries_by_generation WHERE writer = ? "
            "AND generation = ? AND payload IS NOT NULL AND position < ?",
            (writer, generation, before),
        )
        connection.executemany(
            _INSERT_DESTROYED,
            (
                (
                    *(writer, position, generation, offset, kind),
                    *(digest_payload(kind, secret, payload), link),
                )
                for position, offset, kind, payload, link in rows
            ),
        )
    connection.execute(_BURY, (generation_id,))
    connection.execute("DELETE FROM labels WHERE generation_id = ?", (generation_id,))
    for values in (OWNERS, PARENTS):
        connection.execute(values.delete, (generation_id,))
    delete_passages(connection, Place(writer, generation))
