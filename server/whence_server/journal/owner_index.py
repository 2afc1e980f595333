"""Sizes of what the generations of one owner hold."""

from typing import Any

from whence_server.journal.store import Owned
from whence_server.journal.value_index import replace_surrogates

_MEASURE = """
    SELECT coalesce(sum(length(e.payload)), 0) FROM owners o
    JOIN generations g ON g.generation_id = o.generation_id
    JOIN entries e ON e.writer = g.writer AND e.generation = g.started_position
    WHERE o.owner = ?
"""
_OLDEST = """
    SELECT CAST(generation_id AS BLOB) FROM owners WHERE owner = ? ORDER BY start_time_ns LIMIT 3
"""


def measure_owner(connection: Any, owner: str) -> Owned:
    """Count the bytes of the entries of an owner's generations, and find the oldest of these."""
    name = replace_surrogates(owner)
    ((num_bytes,),) = connection.execute(_MEASURE, (name,)).fetchall()
    oldest = connection.execute(_OLDEST, (name,))
    return Owned(int(num_bytes), tuple(found.decode(errors="replace") for (found,) in oldest))
