"""Bytes that each caller has on record, for a limit on them."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from whence_server.domain.errors import StoredBytesError
from whence_server.journal.readers import Readers
from whence_server.journal.store import Owned, Store

_FRESH_S = 600.0
"""Age from which bytes are counted again: another server may write to the store, or delete."""
_PAUSE_S = 5.0
"""Least time between two counts for one caller, whose first count may read a million entries."""


@dataclass(slots=True)
class _Account:
    """Bytes of one caller at the last count, and since."""

    owned: Owned
    counted_at_s: float
    num_bytes: int
    has_deleted: bool = False


class StoredBytes:
    """Bytes on record of each caller, counted in the store once and kept up to date in memory.

    A number may be too large by what is written while it is counted.

    Args:
        store: the journal's database.
        readers: threads that read it.
        flush: commits what is appended, so that a count sees it.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        readers: Readers,
        flush: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._readers = readers
        self._flush = flush
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def add(self, owner: str, num_bytes: int) -> None:
        """Note that an entry of one of a caller's generations is written."""
        account = self._accounts.get(owner)
        if account is not None:
            account.num_bytes += num_bytes

    def note_deletion(self, owner: str) -> None:
        """Note that a generation of a caller was deleted: its bytes are counted when needed."""
        account = self._accounts.get(owner)
        if account is not None:
            account.has_deleted = True

    def note_sweep(self) -> None:
        """Note that retention has deleted generations of any callers."""
        for account in self._accounts.values():
            account.has_deleted = True

    async def check(self, owner: str, limit: int) -> None:
        """Check that a caller may store more.

        Args:
            owner: id of the caller; "" without authentication, which has no limit.
            limit: maximum number of bytes; 0 for no limit.

        Raises:
            StoredBytesError: the caller has as much on record as it may have.
        """
        if not limit or not owner:
            return
        account = self._accounts.get(owner)
        if account is None or self._is_stale(account, limit):
            begun_at_s = self._clock()
            await self._flush()
            owned = await self._readers.run_heavy(self._store.measure_owner, owner)
            account = _Account(owned, begun_at_s, owned.num_bytes)
            self._accounts[owner] = account
        if account.num_bytes >= limit:
            raise StoredBytesError(account.num_bytes, limit, account.owned.oldest)

    def _is_stale(self, account: _Account, limit: int) -> bool:
        age_s = self._clock() - account.counted_at_s
        if age_s >= _FRESH_S:
            return True
        if account.num_bytes < limit:
            return False
        # Deletions, and what could be deleted, matter only to a caller that is at its limit.
        return account.has_deleted or not account.owned.oldest or age_s >= _PAUSE_S
