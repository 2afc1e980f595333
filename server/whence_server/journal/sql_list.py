"""Pages of generations from the database, each read through the most selective index.

A page takes a bounded number of index steps for every filter: the most selective index is walked
in slices, each row is checked against the rest of the filter, and after `MAX_EXAMINED` rows the
page ends.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from whence_server.journal.listing import PageKey
from whence_server.journal.rows import GenerationRow, ListFilter
from whence_server.journal.sql_lookup import load_row
from whence_server.journal.sql_rows import ROW_COLUMNS
from whence_server.journal.store import Page
from whence_server.journal.value_index import OWNERS, PARENTS

MAX_EXAMINED = 4_000
"""Maximum number of generations examined for a page, in about 10 ms."""
_SLICE = 1_000
# Labels on more generations than this count as equally selective.
_MANY = 200
_INT64 = 2**63 - 1
_LIVE = "d.deleted = 0"
# An id as bytes, as in ROW_COLUMNS: one that is no UTF-8 must not cost a page.
_KEY = "d.start_time_ns, CAST(d.generation_id AS BLOB)"


class _Index(NamedTuple):
    """An index over generations, ordered by start time."""

    source: str
    conditions: tuple[str, ...]
    bindings: tuple[str, ...]


class _Condition(NamedTuple):
    """An SQL condition on the walked index, `d`, or on a generation, `g`."""

    sql: str
    bindings: tuple[int | str | bytes, ...]


def read_page(
    connection: Any, list_filter: ListFilter, beyond: PageKey | None, limit: int, max_bytes: int
) -> Page:
    """Read a page as `Store.read_page` does."""
    index = _choose_index(connection, list_filter)
    if index is None:
        return Page([], None)
    found: list[GenerationRow] = []
    num_bytes = 0
    for _ in range(MAX_EXAMINED // _SLICE):
        last = _find_slice_end(connection, index, list_filter, beyond)
        # One more than fit: it shows that the page is full.
        most = limit + 1 - len(found)
        for row, key, size in _read_matching(
            connection, index, list_filter, beyond, last, most=most
        ):
            num_bytes += size
            if len(found) == limit or (found and num_bytes > max_bytes):
                return Page(found, beyond)
            found.append(row)
            beyond = key
        if last is None:
            return Page(found, None)
        beyond = last
    return Page(found, beyond)


def _choose_index(connection: Any, list_filter: ListFilter) -> _Index | None:
    """Return the index to walk; None if a label, owner, parent or model is on no generation."""
    indexes = list(_count_selective(connection, list_filter))
    if any(not number for number, _ in indexes):
        return None
    if indexes and min(indexes)[0] < _MANY:
        return min(indexes, key=lambda pair: pair[0])[1]
    if list_filter.trace_id:
        by_trace = "generations d INDEXED BY generations_by_trace"
        return _Index(by_trace, (_LIVE, "d.trace_id = ?"), (list_filter.trace_id,))
    if indexes:
        return indexes[0][1]
    return _Index("generations d INDEXED BY generations_by_start", (_LIVE,), ())


def _count_selective(connection: Any, list_filter: ListFilter) -> Iterator[tuple[int, _Index]]:
    """Yield the indexes of the filter, but for traces, with their numbers up to `_MANY`."""
    wanted = [
        _Index("labels d", ("d.name = ?", "d.value = ?"), label)
        for label in list_filter.labels.items()
    ]
    if list_filter.owner is not None:
        wanted.append(_Index("owners d", ("d.owner = ?",), (list_filter.owner,)))
    if list_filter.parent:
        wanted.append(_Index("parents d", ("d.parent = ?",), (list_filter.parent,)))
    if list_filter.model:
        by_model = "generations d INDEXED BY generations_by_model"
        wanted.append(_Index(by_model, (_LIVE, "d.model = ?"), (list_filter.model,)))
    for index in wanted:
        ((number,),) = connection.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM {index.source} "  # noqa: S608 - constants only
            f"WHERE {' AND '.join(index.conditions)} LIMIT ?) AS found",
            (*index.bindings, _MANY),
        )
        yield number, index


def _find_slice_end(
    connection: Any, index: _Index, list_filter: ListFilter, beyond: PageKey | None
) -> PageKey | None:
    """Return the last key of the index's next slice; None if the rest fits into one."""
    conditions = _make_walk_conditions(index, list_filter, beyond, None)
    found = connection.execute(
        f"SELECT {_KEY} FROM {index.source} "  # noqa: S608
        f"WHERE {_join_sql(conditions)} ORDER BY d.start_time_ns DESC, d.generation_id DESC "
        "LIMIT 1 OFFSET ?",
        (*_collect_bindings(conditions), _SLICE - 1),
    ).fetchall()
    return PageKey(*found[0]) if found else None


def _read_matching(
    connection: Any,
    index: _Index,
    list_filter: ListFilter,
    beyond: PageKey | None,
    last: PageKey | None,
    *,
    most: int,
) -> Any:
    """Yield (row, key, bytes) of the first generations of one slice that match the filter."""
    conditions = [
        *_make_walk_conditions(index, list_filter, beyond, last),
        *_make_filter_conditions(list_filter),
    ]
    cursor = connection.execute(
        f"SELECT {_KEY}, {ROW_COLUMNS} "  # noqa: S608
        f"FROM {index.source} CROSS JOIN generations g ON g.generation_id = d.generation_id "
        f"WHERE {_join_sql(conditions)} ORDER BY d.start_time_ns DESC, d.generation_id DESC "
        "LIMIT ?",
        (*_collect_bindings(conditions), most),
    )
    try:
        for start_time_ns, generation_id, *stored in cursor:
            size = sum(len(value) for value in stored if isinstance(value, bytes))
            yield load_row(connection, stored), PageKey(start_time_ns, generation_id), size
    finally:
        cursor.close()


def _make_walk_conditions(
    index: _Index, list_filter: ListFilter, beyond: PageKey | None, last: PageKey | None
) -> list[_Condition]:
    """Return the conditions that bound the walk over the index."""
    conditions = [_Condition(" AND ".join(index.conditions), index.bindings)]
    key = "(d.start_time_ns, d.generation_id)"
    if beyond is not None:
        conditions.append(_Condition(f"{key} < (?, CAST(? AS TEXT))", beyond))
    if last is not None:
        conditions.append(_Condition(f"{key} >= (?, CAST(? AS TEXT))", last))
    if list_filter.start_after_ns is not None:
        after = _Condition("d.start_time_ns > ?", (_clamp_int64(list_filter.start_after_ns),))
        conditions.append(after)
    if list_filter.start_before_ns is not None:
        before = _Condition("d.start_time_ns < ?", (_clamp_int64(list_filter.start_before_ns),))
        conditions.append(before)
    return conditions


def _make_filter_conditions(list_filter: ListFilter) -> list[_Condition]:
    """Return the conditions on each walked generation."""
    conditions = [_Condition("g.deleted = 0", ())]
    if list_filter.model:
        conditions.append(_Condition("g.model = ?", (list_filter.model,)))
    if list_filter.trace_id:
        conditions.append(_Condition("g.trace_id = ?", (list_filter.trace_id,)))
    if list_filter.owner is not None:
        conditions.append(_Condition(OWNERS.condition, (list_filter.owner,)))
    if list_filter.parent:
        conditions.append(_Condition(PARENTS.condition, (list_filter.parent,)))
    for label in list_filter.labels.items():
        probe = (
            "EXISTS (SELECT 1 FROM labels l WHERE l.name = ? AND l.value = ? "
            "AND l.start_time_ns = d.start_time_ns AND l.generation_id = d.generation_id)"
        )
        conditions.append(_Condition(probe, label))
    return conditions


def _join_sql(conditions: list[_Condition]) -> str:
    return " AND ".join(condition.sql for condition in conditions)


def _collect_bindings(conditions: list[_Condition]) -> tuple[int | str | bytes, ...]:
    return tuple(binding for condition in conditions for binding in condition.bindings)


def _clamp_int64(value: int) -> int:
    # A Timestamp reaches from the year 1 to 9999, nanoseconds in 64 bits from 1677 to 2262.
    return max(-_INT64, min(value, _INT64))
