"""Store whose methods call a test's functions, to hold a moment between two threads still."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whence_server.journal import journal
from whence_server.journal.derive import EntryDigest
from whence_server.journal.listing import PageKey
from whence_server.journal.rows import Durability, ListFilter
from whence_server.journal.store import Batch, Page, Store


def _do_nothing() -> None:
    pass


@dataclass
class StoreHooks:
    """Functions that a journal's store calls, each on the thread of the method.

    Attributes:
        before_page: called before a page of a list is read.
        after_digests: called after the digests of a generation's entries were read.
        after_write: called after a batch was committed.
    """

    before_page: Callable[[], object] = _do_nothing
    after_digests: Callable[[], object] = _do_nothing
    after_write: Callable[[], object] = _do_nothing

    def open_store(self, path: Path, durability: Durability) -> Any:
        """Open a store of the test's kind with these hooks; for `Journal.open`."""
        return _HookedStore(journal.SqliteStore(path, durability), self)


class _HookedStore:
    def __init__(self, store: Store, hooks: StoreHooks) -> None:
        self._store = store
        self._hooks = hooks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read_page(
        self, list_filter: ListFilter, beyond: PageKey | None, limit: int, max_bytes: int
    ) -> Page:
        self._hooks.before_page()
        return self._store.read_page(list_filter, beyond, limit, max_bytes)

    def read_entry_digests(self, generation_id: str) -> tuple[int, list[EntryDigest]]:
        found = self._store.read_entry_digests(generation_id)
        self._hooks.after_digests()
        return found

    def write(self, batch: Batch) -> None:
        self._store.write(batch)
        self._hooks.after_write()
