"""Queries of retention on one log, each through an index, in SQL of both databases."""

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from whence.v1 import audit_pb2, call_pb2, deletion_pb2
from whence_server.domain.entries import EntryKind
from whence_server.domain.retention import ANY_VALUE, LabelPattern
from whence_server.journal.chain import Origin
from whence_server.journal.derive import derive_started_index
from whence_server.journal.label_index import parse_labels
from whence_server.journal.listing import PageKey
from whence_server.journal.retention.store import Candidate, RemovalLimits

_INT64 = 2**63 - 1
_OWN = 'e.writer = g.writer AND e.generation = g.started_position AND e."offset"'
# A range, not an equality: SQLite would walk over the whole table for the newest position.
_COLUMNS = f"""
    CAST(g.generation_id AS BLOB), g.start_time_ns, g.started_position, CAST(g.labels AS BLOB),
    (SELECT "offset" FROM entries e INDEXED BY entries_by_generation
     WHERE {_OWN} > 0 ORDER BY e."offset" DESC LIMIT 1),
    (SELECT position FROM entries e INDEXED BY entries_by_generation
     WHERE {_OWN} > 0 ORDER BY e."offset" DESC LIMIT 1),
    (SELECT max(position) FROM entries e INDEXED BY entries_by_generation
     WHERE {_OWN} BETWEEN 0 AND 0)
"""  # noqa: S608  # constants only


_OF_NAME = "SELECT generation_id FROM labels WHERE name = ?"
_OF_LABEL = "SELECT generation_id FROM labels WHERE name = ? AND value = ?"


def read_candidates(  # noqa: PLR0917 - where, what, and how many
    connection: Any,
    writer: int,
    pattern: LabelPattern | None,
    before_ns: int,
    beyond: PageKey | None,
    limit: int,
) -> list[Candidate]:
    """Read candidates of a writer's log as `RetentionStore.read_candidates` does."""
    key = "(d.start_time_ns, d.generation_id)"
    conditions = ["g.writer = ?", "d.start_time_ns < ?"]
    bindings: list[int | str | bytes] = [writer, min(before_ns, _INT64)]
    if beyond is not None:
        conditions.append(f"{key} > (?, CAST(? AS TEXT))")
        bindings += beyond
    if pattern is None:
        source = "generations d INDEXED BY generations_by_start"
        conditions.append("d.deleted = 0")
    else:
        source = "labels d"
        conditions.append("d.name = ?")
        bindings.append(pattern.name)
        if pattern.value != ANY_VALUE:
            conditions.append("d.value = ?")
            bindings.append(pattern.value)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM {source} "  # noqa: S608 - constants only
        "CROSS JOIN generations g ON g.generation_id = d.generation_id "
        f"WHERE {' AND '.join(conditions)} AND g.deleted = 0 "
        "ORDER BY d.start_time_ns, d.generation_id LIMIT ?",
        (*bindings, limit),
    )
    return [_make_candidate(*row) for row in rows]


def _make_candidate(  # noqa: PLR0917 - one column each
    generation_id: bytes,
    start_time_ns: int,
    started_position: int,
    labels: bytes,
    last_offset: int | None,
    last_position: int | None,
    last_outside: int | None,
) -> Candidate:
    try:
        parsed: dict[str, str] | None = parse_labels(labels)
    except (ValueError, TypeError):
        parsed = None
    return Candidate(
        generation_id.decode(errors="replace"),
        PageKey(start_time_ns, generation_id),
        started_position,
        parsed,
        last_offset or 0,
        max(last_position or 0, last_outside or 0),
    )


def agrees_with_entries(connection: Any, writer: int, candidate: Candidate) -> bool:
    """Compare a candidate with its STARTED entry, as `RetentionStore` says."""
    found = connection.execute(
        "SELECT payload FROM entries WHERE writer = ? AND position = ?",
        (writer, candidate.started_position),
    ).fetchall()
    if not found or found[0][0] is None:
        return False
    try:
        index = derive_started_index(found[0][0])
    except ValueError:
        return False
    key = PageKey(index.start_time_ns, index.generation_id.encode())
    return (key, dict(index.labels)) == (candidate.key, candidate.labels)


def find_newest_start(connection: Any, writer: int) -> int | None:
    """Return the newest start time of a log's generations; None without one."""
    found = connection.execute(
        "SELECT start_time_ns FROM generations INDEXED BY generations_by_start "
        "WHERE writer = ? AND deleted = 0 ORDER BY start_time_ns DESC LIMIT 1",
        (writer,),
    ).fetchall()
    return int(found[0][0]) if found else None


def find_newest_start_anywhere(connection: Any) -> int | None:
    """Return the newest start time of the generations of all logs; None without one."""
    found = connection.execute(
        "SELECT start_time_ns FROM generations INDEXED BY generations_by_start "
        "WHERE deleted = 0 ORDER BY start_time_ns DESC LIMIT 1"
    ).fetchall()
    return int(found[0][0]) if found else None


def count_matching(connection: Any, writer: int, patterns: tuple[LabelPattern, ...]) -> int:
    """Return the number of a log's generations that match one of the patterns."""
    if not patterns:
        return 0
    parts: list[str] = []
    bindings: list[str | int] = [writer]
    for name, value in patterns:
        parts.append(_OF_NAME if value == ANY_VALUE else _OF_LABEL)
        bindings += (name,) if value == ANY_VALUE else (name, value)
    ((number,),) = connection.execute(
        "SELECT count(*) FROM generations WHERE writer = ? "  # noqa: S608 - constants only
        f"AND generation_id IN ({' UNION '.join(parts)})",
        tuple(bindings),
    )
    return int(number)


def find_removable(connection: Any, writer: int, limits: RemovalLimits) -> Origin | None:
    """Find the last entry of a log that can be removed, as `RetentionStore.find_removable` does."""
    kept = connection.execute(
        "SELECT started_position FROM generations INDEXED BY generations_kept "
        "WHERE writer = ? AND deleted = 0 ORDER BY started_position LIMIT 1",
        (writer,),
    ).fetchall()
    rows = connection.execute(
        "SELECT position, kind, payload, hash FROM entries "
        "WHERE writer = ? AND position < ? ORDER BY position LIMIT ?",
        (writer, kept[0][0] if kept else _INT64, limits.max_entries),
    )
    last = None
    for position, kind, payload, entry_hash in rows:
        before_ns = limits.audit_before_ns if kind == EntryKind.AUDIT else limits.before_ns
        if position > limits.read_position:
            before_ns -= limits.unread_ns
        if payload is not None and _get_time_ns(kind, payload) >= before_ns:
            break
        last = Origin(position, entry_hash)
    return last


_READ_TIME: dict[int, Callable[[bytes], int]] = {
    EntryKind.CALL: lambda it: int(call_pb2.Call.FromString(it).end_time.ToNanoseconds()),
    EntryKind.DELETED: lambda it: int(deletion_pb2.Deletion.FromString(it).time.ToNanoseconds()),
    EntryKind.AUDIT: lambda it: _get_audit_time_ns(audit_pb2.AuditRecord.FromString(it)),
}
"""Readers of the times of records outside generations; other kinds are never removed."""


def _get_audit_time_ns(record: audit_pb2.AuditRecord) -> int:
    last = record.last_time if record.HasField("last_time") else record.time
    return int(last.ToNanoseconds())


def _get_time_ns(kind: int, payload: bytes) -> int:
    """Return the time of a record; one that never passes if there is none to read."""
    try:
        return _READ_TIME[kind](payload)
    except (KeyError, DecodeError, ValueError):
        return _INT64
