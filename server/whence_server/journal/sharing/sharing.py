"""The parts of a journal whose database several servers share."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

from whence_server.domain.entries import Entry
from whence_server.domain.errors import (
    ConfigurationError,
    JournalUnwritableError,
    WhenceError,
)
from whence_server.journal.log import Log
from whence_server.journal.patience import Patience
from whence_server.journal.readers import Readers
from whence_server.journal.sealing.sealed_store import SealedStore
from whence_server.journal.sharing.elsewhere import Elsewhere
from whence_server.journal.sharing.errands import Delete, Errands
from whence_server.journal.sharing.log_ends import LogEnds
from whence_server.journal.sharing.logs import follow_logs
from whence_server.journal.sharing.refused import RefusedLogs
from whence_server.journal.sharing.reservations import Reservations
from whence_server.journal.sharing.store import Change, SharedStore
from whence_server.journal.sharing.upkeep import keep_lease
from whence_server.journal.store import State, Store

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.5


class Sharing:
    """Lease, held ids, errands and changes of other logs; without a shared database, nothing.

    Args:
        store: the database.
        log: the log of this server.
        readers: threads for look-ups.
        delete: deletes a generation of this log, for a caller.
        patience: patience of streams with a database that is away.
    """

    def __init__(
        self, store: Store, log: Log, readers: Readers, delete: Delete, patience: Patience
    ) -> None:
        """Begin in the running event loop."""
        self._store = store if isinstance(store, SharedStore) else None
        self._log = log
        self._readers = readers
        self._patience = patience
        self._tasks: list[asyncio.Task[None]] = []
        if self._store is None:
            return
        self._reservations = Reservations(log, self._store, readers)
        self._elsewhere = Elsewhere(self._store)
        self._errands = Errands(self._store, readers, self._elsewhere, delete)
        self._refused = RefusedLogs(self._store.lease_s)
        self._ends = LogEnds(partial(readers.run_heavy, self._store.list_logs))
        self._tasks = [
            asyncio.create_task(keep_lease(self._store, log.writer), name="journal-lease"),
            asyncio.create_task(self._errands.run(), name="journal-errands"),
        ]

    @property
    def lease_s(self) -> float | None:
        """Seconds without a sign of life after which another server takes the log over, or None."""
        return None if self._store is None else self._store.lease_s

    async def take_over(self) -> tuple[SharedStore, State] | None:
        """Take a log whose server died or left something to do; None if there is none.

        Raises:
            JournalError: the database is away, or the log is damaged.
            ConfigurationError: the log is damaged, or this server lacks its keys.
        """
        if self._store is None:
            return None
        skipped = self._refused.list_paused()
        return await self._load(await self._readers.run_heavy(self._store.take_over, skipped))

    async def list_idle_logs(self) -> list[int]:
        """Return the writers of logs that no server holds and that have entries.

        Raises:
            JournalError: the database is away.
        """
        if self._store is None:
            return []
        return await self._readers.run_heavy(self._store.list_idle_logs)

    async def take_idle(self, writer: int) -> tuple[SharedStore, State] | None:
        """Take a log that no server holds; None if a server has it by now; raise as `take_over`."""
        if self._store is None:
            return None
        return await self._load(await self._readers.run_heavy(self._store.take_idle, writer))

    async def _load(self, store: SharedStore | None) -> tuple[SharedStore, State] | None:
        if store is None:
            return None
        try:
            await self._check_keys(store)
            state = await self._readers.run_heavy(store.load_state)
            # Reading a large log may have taken longer than the lease.
            await self._readers.run_heavy(store.renew)
        except BaseException as error:
            if isinstance(error, WhenceError) and not isinstance(error, JournalUnwritableError):
                pause_s = self._refused.add(store.writer)
                _log.error(
                    "log number %d cannot be taken over; this server tries again in %.0f s",
                    store.writer,
                    pause_s,
                )
            await asyncio.to_thread(store.close)
            raise
        self._refused.forget(store.writer)
        return store, state

    async def _check_keys(self, store: SharedStore) -> None:
        """Refuse the log of a server that encrypts, if this one has no keys.

        Raises:
            ConfigurationError: it would write to the log in clear.
        """
        if not isinstance(store, SealedStore) and await self._readers.run_heavy(store.has_sealed):
            raise ConfigurationError(
                "other servers of the database encrypt its journal: start this one with their "
                "--journal-key"
            )

    async def do_errands(self) -> None:
        """Do the present errands of a log that was taken over.

        Raises:
            JournalError: the database is away.
        """
        if self._store is not None:
            await self._errands.do_all()

    async def give_back(self) -> None:
        """Give a log back that was taken over, in which nothing is left to do.

        Raises:
            JournalError: the database is away.
        """
        if self._store is not None:
            await self._end_tasks()
            await self._log.writer.run(self._store.end_lease)

    def hold(self, *generation_ids: str) -> AbstractAsyncContextManager[None]:
        """Hold ids within a block, as `Reservations.hold`.

        The database of one server needs no hold: `Log.create` looks an id up.
        """
        if self._store is None:
            return nullcontext()
        return self._reservations.hold(*generation_ids)

    async def find_other_writer(self, generation_id: str) -> int | None:
        """Return the writer of a generation in another log; None if it is in this one.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """
        if self._store is None or self._log.get_live(generation_id) is not None:
            return None
        writer = await self._readers.run(self._store.find_writer, generation_id)
        return None if writer == self._store.writer else writer

    async def is_elsewhere(self, generation_id: str) -> bool:
        """Return whether a known generation is in the log of another server."""
        return await self.find_other_writer(generation_id) is not None

    async def wait_elsewhere(self, generation_id: str) -> bool:
        """Wait for news of a generation in another log; return False if it is in this one.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """
        if await self.find_other_writer(generation_id) is None:
            return False
        await self._elsewhere.wait(Change.ENTRIES, _LOOK_AGAIN_S)
        return True

    async def read_other_ends(self) -> dict[bytes, int]:
        """Return the position of the newest committed entry of each log but this, by its id."""
        if self._store is None:
            return {}
        logs = await self._ends.read()
        return {log.log_id: log.position for log in logs if log.writer != self._store.writer}

    def follow_logs(
        self, reached: Mapping[bytes, int], max_batch_bytes: int
    ) -> AsyncGenerator[tuple[bytes, list[Entry]], None] | None:
        """Return a generator of the entries of all logs, as `follow_logs`; None if there is one."""
        if self._store is None:
            return None
        return follow_logs(
            self._store,
            self._ends,
            self._readers,
            self._patience,
            self._wait_for_any,
            reached=reached,
            max_batch_bytes=max_batch_bytes,
        )

    async def _wait_for_any(self) -> None:
        """Wait until this log or another one may have grown."""
        waiting = [
            asyncio.ensure_future(self._elsewhere.wait(Change.ENTRIES, _LOOK_AGAIN_S)),
            asyncio.ensure_future(self._log.writer.committed.wait()),
        ]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        self._log.writer.check()

    async def delete_elsewhere(self, writer: int, generation_id: str, caller_id: str) -> None:
        """Have the holder of another log delete a generation, as `Errands.give`."""
        await self._errands.give(writer, generation_id, caller_id)

    async def close(self) -> None:
        """End everything but the lease, which the store gives back."""
        await self._end_tasks()
        if self._store is not None:
            await self._ends.close()
            await self._elsewhere.close()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
