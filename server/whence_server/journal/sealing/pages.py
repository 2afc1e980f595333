"""Merging of two pages of a list: of generations in clear, and of encrypted ones."""

from whence_server.journal.listing import PageKey
from whence_server.journal.rows import GenerationRow
from whence_server.journal.store import Page


def merge_pages(one: Page, other: Page, limit: int) -> Page:
    """Return the page that two pages of disjoint lists make together, newest first.

    A page says nothing of what comes after its end, so that the merged one ends where the first
    of both does.
    """
    if not other.rows and other.end is None:
        return one
    if not one.rows and one.end is None:
        return other
    end = max((page.end for page in (one, other) if page.end is not None), default=None)
    rows = sorted((*one.rows, *other.rows), key=_make_key, reverse=True)
    if end is not None:
        rows = [row for row in rows if _make_key(row) >= end]
    if len(rows) > limit:
        rows = rows[:limit]
        end = _make_key(rows[-1])
    return Page(rows, end)


def _make_key(row: GenerationRow) -> PageKey:
    return PageKey(row.index.start_time_ns, row.generation_id.encode())
