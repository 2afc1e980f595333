"""Tables beside a log of the journal, and the FINISHED entries that they are made of.

The transparency log and the index of texts have tables of their own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from whence_server.domain.entries import Entry
from whence_server.journal.log import Log
from whence_server.journal.readers import Readers
from whence_server.journal.sharing.store import SharedStore
from whence_server.journal.store import Store

T = TypeVar("T")


class Tree:
    """Tables beside one log of the journal.

    Attributes:
        writer: number of the writer of the journal's log.
        is_shared: True if other servers write to the same tables.
    """

    def __init__(self, log: Log, store: Store, readers: Readers) -> None:
        self._log = log
        self._store = store
        self._readers = readers
        self.is_shared = isinstance(store, SharedStore)
        self.writer = store.writer if isinstance(store, SharedStore) else 1

    async def change(self, change: Callable[[Any], T]) -> T:
        """Call a function in a transaction, as `Store.change_tree`.

        Raises:
            JournalUnwritableError: the disk is full or failing, or the database is away or busy.
        """
        if self.is_shared:
            return await self._readers.run_heavy(self._store.change_tree, change)
        return await self._log.writer.run(partial(self._store.change_tree, change))

    async def read(self, read: Callable[[Any], T]) -> T:
        """Call a function with a connection that sees one state of the database."""
        return await self._readers.run(self._store.read_tree, read)

    async def read_long(self, read: Callable[[Any], T]) -> T:
        """Call a function as `read` does, in a thread of those that may take long."""
        return await self._readers.run_heavy(self._store.read_tree, read)

    async def read_finished(self, after_position: int, limit: int) -> tuple[list[Entry], int]:
        """Read the next committed FINISHED entries of this log.

        Returns:
            The entries, and the position up to which all of them were read.
        """
        last = self._log.writer.committed_position
        entries = await self._readers.run_heavy(
            self._store.read_finished, after_position, last, limit
        )
        # There may be more than were read: up to the last position there are none if none came.
        return entries, entries[-1].position if entries else max(last, after_position)
