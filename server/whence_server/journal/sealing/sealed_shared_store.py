"""A store that several servers share, whose entries are encrypted."""

from collections.abc import Callable, Collection

from whence_server.domain.entries import Entry
from whence_server.journal.sealing.keyring import Keyring
from whence_server.journal.sealing.sealed_store import SealedStore
from whence_server.journal.sharing.store import Change, Errand, SharedStore

_LONGEST_CACHED_S = 60.0
"""Time for which a key stays in memory: another server may have destroyed it since."""


class SealedSharedStore(SealedStore):
    """A shared store with the keys of its encrypted generations, which all its servers share.

    Args:
        shared: the store.
        keys: the keys.
        own_keys: whether `close` closes the keys too; logs that are taken over have them in common.
    """

    def __init__(self, shared: SharedStore, keys: Keyring, *, own_keys: bool = True) -> None:
        super().__init__(shared, keys)
        self._shared = shared
        self._own_keys = own_keys

    def _end_deletions(self) -> None:
        # Marks of generations that are not deleted yet may be those of another server's deletion,
        # which is in progress: they stay, and mean nothing by themselves.
        self._keys.destroy(self._list_deleted(self._keys.list_doomed()))

    # ---- the lease ----

    @property
    def lease_s(self) -> float:
        """Seconds without `renew` after which another server takes the log over."""
        return self._shared.lease_s

    @property
    def writer(self) -> int:
        """Number of the log's writer."""
        return self._shared.writer

    def renew(self) -> None:
        """Show that this server lives, and forget keys; raise as `SharedStore.renew` does."""
        self._keys.forget_older(_LONGEST_CACHED_S)
        self._shared.renew()

    def end_lease(self) -> None:
        """Give the log back, in which nothing is left to do."""
        self._shared.end_lease()

    def take_over(self, skipped: Collection[int] = ()) -> "SealedSharedStore | None":
        """Take a log whose server died or left something to do, but for some writers."""
        return self._seal(self._shared.take_over(skipped))

    def list_idle_logs(self) -> list[int]:
        """Return the writers of logs that no server holds and that have entries."""
        return self._shared.list_idle_logs()

    def take_idle(self, writer: int) -> "SealedSharedStore | None":
        """Take a log that no server holds; None if a server has it by now."""
        return self._seal(self._shared.take_idle(writer))

    def _seal(self, taken: SharedStore | None) -> "SealedSharedStore | None":
        return None if taken is None else SealedSharedStore(taken, self._keys, own_keys=False)

    # ---- ids, and generations of other logs ----

    def release_id(self, generation_id: str) -> None:
        """Give an id back; raise as `SharedStore.release_id` does."""
        self._shared.release_id(generation_id)

    def release_later(self, generation_id: str) -> None:
        """Give an id back with the next `renew`, unless it is taken again."""
        self._shared.release_later(generation_id)

    def find_writer(self, generation_id: str) -> int:
        """Return the number of the writer of a generation's log."""
        return self._shared.find_writer(generation_id)

    def listen(self, on_change: Callable[[Change], None]) -> Callable[[], None]:
        """Call a function, in a thread, after each change by others; return what ends it."""
        return self._shared.listen(on_change)

    def read_log(
        self, writer: int, after_position: int, *, limit: int, max_bytes: int
    ) -> list[Entry]:
        """Read entries of all kinds of one log by position, opened as by `read_all`."""
        return self._open_all(
            self._shared.read_log(writer, after_position, limit=limit, max_bytes=max_bytes)
        )

    # ---- errands ----

    def ask_deletion(self, writer: int, generation_id: str, caller_id: str) -> int:
        """Ask the holder of a log to delete a generation; return the errand's number."""
        return self._shared.ask_deletion(writer, generation_id, caller_id)

    def list_errands(self) -> list[Errand]:
        """Return what others ask of the holder of this log."""
        return self._shared.list_errands()

    def end_errand(self, number: int, outcome: str) -> None:
        """Answer an errand of this log."""
        self._shared.end_errand(number, outcome)

    def read_outcome(self, number: int) -> str | None:
        """Return the answer to an errand; None if there is none yet."""
        return self._shared.read_outcome(number)

    def forget_errand(self, number: int) -> None:
        """Remove an errand that was answered, or that nobody waits for any more."""
        self._shared.forget_errand(number)

    def close(self) -> None:
        """Close the store, and the keys if they are its own."""
        if self._own_keys:
            super().close()
        else:
            self._shared.close()
