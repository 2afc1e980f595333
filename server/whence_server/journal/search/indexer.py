"""Indexer: follows a log of the journal, and stores the passages of each generation that ends.

It reads behind the commits, so that no stream waits for it. A generation is found a second or two
after its end. A journal from before the index is read from its beginning.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import WhenceError
from whence_server.journal.search.fingerprints import make_fingerprints, normalise
from whence_server.journal.search.passages import Place, add_passages
from whence_server.journal.search.texts import list_texts, read_started

_log = logging.getLogger(__name__)

T = TypeVar("T")

CURSOR = "search"
"""Name of the journal's cursor."""
_INTERVAL_S = 1.0
# A few milliseconds of the thread that commits.
_LIMIT = 16
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0
_PLACE = "SELECT writer, started_position FROM generations WHERE generation_id = ? AND deleted = 0"


class IndexedTree(Protocol):
    """Access to the index's table, and to the journal's FINISHED entries (`journal.tree.Tree`)."""

    @property
    def is_shared(self) -> bool:
        """True if other servers write to the database."""

    async def change(self, change: Callable[[Any], T]) -> T:
        """Call a function in one durable transaction."""
        ...

    async def read_long(self, read: Callable[[Any], T]) -> T:
        """Call a function that reads one state of the database, and may take long."""
        ...

    async def read_finished(self, after_position: int, limit: int) -> tuple[list[Entry], int]:
        """Return the next FINISHED entries, and the position up to which all were read."""
        ...


class IndexedJournal(Protocol):
    """One log of the journal."""

    @property
    def tree(self) -> IndexedTree:
        """Tables beside the journal."""

    @property
    def committed_position(self) -> int:
        """Position of the newest committed entry."""

    async def wait_committed(self, after_position: int) -> None:
        """Wait until an entry is committed after a position."""

    async def read_cursor(self, name: str) -> int:
        """Return the position that a cursor has reached."""
        ...

    def advance(self, name: str, position: int) -> None:
        """Move a cursor; durable with the next commit."""


class Indexer:
    """Task that indexes one log of the journal.

    Args:
        journal: the log.
        interval_s: seconds between two looks, in which generations gather.
    """

    def __init__(self, journal: IndexedJournal, interval_s: float = _INTERVAL_S) -> None:
        self._journal = journal
        self._interval_s = interval_s
        self._position: int | None = None
        self._moved = asyncio.Event()
        self._hurry = asyncio.Event()
        self._retry_s = _FIRST_RETRY_S
        self._task: asyncio.Task[None] | None = None

    @property
    def num_entries_behind(self) -> int:
        """Number of committed entries that are not looked at yet."""
        return max(0, self._journal.committed_position - (self._position or 0))

    def start(self) -> None:
        """Start in the running event loop."""
        self._task = asyncio.create_task(self._run(), name=CURSOR)

    async def flush(self, timeout_s: float) -> bool:
        """Index what is committed by now at once; return False if the time ran out."""
        target = self._journal.committed_position
        try:
            async with asyncio.timeout(timeout_s):
                while self._position is None or self._position < target:
                    self._moved.clear()
                    self._hurry.set()
                    await self._moved.wait()
        except TimeoutError:
            return False
        finally:
            self._hurry.clear()
        return True

    async def close(self) -> None:
        """Stop; the next start goes on from the cursor."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 - it is reported, and indexing goes on
                _report(error, self._retry_s)
                await asyncio.sleep(self._retry_s)
                self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    async def _follow(self) -> None:
        if self._position is None:
            self._position = await self._journal.read_cursor(CURSOR)
        while True:
            while await self._index_next():
                pass
            self._retry_s = _FIRST_RETRY_S
            await self._journal.wait_committed(self._position or 0)
            await self._gather()

    async def _gather(self) -> None:
        try:
            async with asyncio.timeout(self._interval_s):
                await self._hurry.wait()
        except TimeoutError:
            pass

    async def _index_next(self) -> bool:
        """Index the next generations; return True if there may be more."""
        position, tree = self._position or 0, self._journal.tree
        entries, reached = await tree.read_finished(position, _LIMIT)
        if entries:
            found = await tree.read_long(lambda it: list(_read_passages(it, entries)))
            if found:
                is_shared = tree.is_shared
                await tree.change(lambda it: add_passages(it, found, is_shared=is_shared))
        if reached > position:
            self._journal.advance(CURSOR, reached)
        self._position = reached
        self._moved.set()
        return bool(entries)


def _read_passages(connection: Any, entries: list[Entry]) -> Iterator[tuple[Place, list[int]]]:
    """Yield the fingerprints of generations by their FINISHED entries."""
    for entry in entries:
        rows = connection.execute(_PLACE, (entry.generation_id,)).fetchall()
        if not rows or entry.kind is not EntryKind.FINISHED:
            continue
        place = Place(*map(int, rows[0]))
        found: set[int] = set()
        for text in list_texts(read_started(connection, place), entry.payload):
            found.update(make_fingerprints(normalise(text.searched)))
        yield place, sorted(found)


def _report(error: Exception, retry_s: float) -> None:
    if isinstance(error, WhenceError):
        _log.error("texts cannot be indexed at present: %s", error)
    else:
        _log.error(
            "the index of texts failed, and is tried again in %.1f s", retry_s, exc_info=error
        )
