"""Candidates of a search: the generations with the most passages in common with a sentence.

The filter stands before every bound: generations that are not asked for push none out of a list.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from whence_server.journal.rows import ListFilter
from whence_server.journal.search.budget import Budget
from whence_server.journal.search.passages import Place, number_owner
from whence_server.journal.value_index import PARENTS

MAX_POSTINGS = 4_000
"""Most generations that are read for one fingerprint."""
# Words that differ cost up to this share of the common fingerprints.
_LEAST_COMMON_SHARE = 0.2
_INT64 = 2**63 - 1
_LABEL = """
    EXISTS (SELECT 1 FROM labels l WHERE l.name = ? AND l.value = ?
    AND l.start_time_ns = g.start_time_ns AND l.generation_id = g.generation_id)
"""

_Binding = int | str


class _Query(NamedTuple):
    """SQL that selects the generations of one fingerprint, and what it binds after it."""

    sql: str
    bindings: tuple[_Binding, ...]

    def read(self, connection: Any, fingerprint: int, most: int) -> list[Place]:
        """Return the newest generations."""
        rows = connection.execute(
            f"SELECT p.writer, p.generation {self.sql} "
            "ORDER BY p.writer DESC, p.generation DESC LIMIT ?",
            (fingerprint, *self.bindings, most),
        ).fetchall()
        return [Place(int(writer), int(generation)) for writer, generation in rows]


class Candidates(NamedTuple):
    """Generations that may have a sentence, those with the most passages of it first."""

    places: list[Place]
    is_cut: bool
    """True if there may be others: not all generations with a passage were read."""


def find_candidates(
    connection: Any, fingerprints: list[int], list_filter: ListFilter, budget: Budget
) -> Candidates:
    """Return the generations that have a part of a sentence's fingerprints."""
    query = _make_query(list_filter)
    counted: Counter[Place] = Counter()
    num_cut = 0
    for fingerprint in fingerprints:
        if budget.is_spent:
            num_cut += 1
            continue
        found = query.read(connection, fingerprint, MAX_POSTINGS + 1)
        num_cut += len(found) > MAX_POSTINGS
        counted.update(found[:MAX_POSTINGS])
    least = max(1, round(_LEAST_COMMON_SHARE * len(fingerprints)))
    # What a list that was cut does not show may be in it.
    ranked = sorted(
        ((number, place) for place, number in counted.items() if number + num_cut >= least),
        reverse=True,
    )
    return Candidates([place for _, place in ranked], num_cut > 0)


def _make_query(list_filter: ListFilter) -> _Query:
    joined = list(_list_conditions(list_filter))
    bindings: list[_Binding] = []
    sql = "FROM passages p "
    if joined:
        sql += (
            "CROSS JOIN generations g ON g.writer = p.writer AND g.started_position = p.generation "
        )
    sql += "WHERE p.fingerprint = ?"
    if list_filter.owner is not None:
        sql += " AND p.owner = ?"
        bindings.append(number_owner(list_filter.owner))
    for condition, values in joined:
        sql += f" AND {condition}"
        bindings += values
    return _Query(sql, tuple(bindings))


def _list_conditions(wanted: ListFilter) -> Iterator[tuple[str, tuple[_Binding, ...]]]:
    """Yield SQL conditions on `generations g`, with what they bind; none for the owner alone."""
    for value, condition in (
        (wanted.model, "g.model = ?"),
        (wanted.trace_id, "g.trace_id = ?"),
        (wanted.parent, PARENTS.condition),
    ):
        if value:
            yield condition, (value,)
    for time_ns, condition in (
        (wanted.start_after_ns, "g.start_time_ns > ?"),
        (wanted.start_before_ns, "g.start_time_ns < ?"),
    ):
        if time_ns is not None:
            yield condition, (max(-_INT64, min(time_ns, _INT64)),)
    for label in wanted.labels.items():
        yield _LABEL, label
