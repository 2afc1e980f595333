"""Group commit: what was appended in one interval becomes one transaction on one thread."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from whence_server.domain.errors import JournalError
from whence_server.journal.rows import Durability
from whence_server.journal.signal import Signal
from whence_server.journal.store import Batch, Store

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Writer:
    """Sends one batch at a time to the thread that owns the store's write connection.

    All methods are called from the event loop's thread. While a batch is being committed, the
    next one gathers.

    Attributes:
        pending: what the next transaction will hold; its owner adds to it, then calls `submit`.
        committed_position: everything up to it is on disk.
        committed: notified after every transaction, and when the writer has failed.
        error: why nothing more can be written, once that is so.
        on_time: told how long every transaction took, in seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        committed_position: int,
        durability: Durability,
        commit_interval_s: float,
        max_pending_bytes: int,
        on_commit: Callable[[Batch], None],
        on_failure: Callable[[], None],
    ) -> None:
        self.pending = Batch()
        self.committed_position = committed_position
        self.committed = Signal()
        self.error: JournalError | None = None
        self.on_time: Callable[[float], None] = _ignore
        self._store = store
        # STRICT commits what one turn of the loop appended: nobody sees it any sooner.
        self._delay_s = 0.0 if durability is Durability.STRICT else commit_interval_s
        self._max_pending_bytes = max_pending_bytes
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, "journal-writer")
        self._timer: asyncio.TimerHandle | None = None
        self._in_flight: Batch | None = None
        self._num_sent = 0
        self._num_done = 0
        self._urgent = False

    def check(self) -> None:
        """Returns as long as the journal can be written.

        Raises:
            JournalError: nothing more can be.
        """
        if self.error is not None:
            # A new one each time: a raised exception collects tracebacks and contexts.
            raise JournalError(self.error.message) from self.error

    def submit(self) -> None:
        """Sees to it that what is pending will be committed."""
        if self._in_flight is None:
            if self._timer is None:
                self._timer = self._loop.call_later(self._delay_s, self._send)
            elif self.pending.num_bytes > self._max_pending_bytes:
                self._send()

    async def flush(self) -> None:
        """Returns once all that was submitted so far is committed.

        Raises:
            JournalError: it could not be.
        """
        self.check()
        if self.pending:
            last = self._num_sent + 1
            if self._in_flight is None:
                self._send()
            else:
                self._urgent = True
        else:
            last = self._num_sent
        while self._num_done < last:
            await self.committed.wait()
            self.check()

    async def writable(self) -> None:
        """Waits while more bytes than the bound are not on disk yet.

        Raises:
            JournalError: nothing more can be written.
        """
        self.check()
        while self._num_uncommitted_bytes() > self._max_pending_bytes:
            await self.committed.wait()
            self.check()

    async def run(self, function: Callable[[], T]) -> T:
        """Calls a function on the writer's thread, between two transactions."""
        return await self._loop.run_in_executor(self._executor, function)

    async def close(self) -> None:
        """Commits what is pending, if it can, and ends the thread."""
        try:
            if self.error is None:
                await self.flush()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._fail(JournalError("the journal is closed"))
            await asyncio.to_thread(self._executor.shutdown)

    def _num_uncommitted_bytes(self) -> int:
        return self.pending.num_bytes + (self._in_flight.num_bytes if self._in_flight else 0)

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch, self.pending = self.pending, Batch()
        self._in_flight = batch
        self._urgent = False
        self._num_sent += 1
        future = self._loop.run_in_executor(self._executor, self._store.write, batch)
        future.add_done_callback(partial(self._done, batch, time.perf_counter()))

    def _done(self, batch: Batch, started_s: float, future: asyncio.Future[None]) -> None:
        self._in_flight = None
        error = future.exception()
        if error is not None:
            _log.critical("the journal cannot be written any more", exc_info=error)
            failure = JournalError(f"the journal cannot be written any more: {error}")
            failure.__cause__ = error
            self._fail(failure)
            return
        self._num_done += 1
        self.committed_position = max(self.committed_position, batch.last_position)
        if self.pending and self.error is None:
            if self._urgent:
                self._send()
            else:
                self.submit()
        self._on_commit(batch)
        self.on_time(time.perf_counter() - started_s)
        self.committed.notify()

    def _fail(self, error: JournalError) -> None:
        if self.error is None:
            self.error = error
            self._on_failure()
            self.committed.notify()


def _ignore(_duration_s: float) -> None:
    """Nobody asked."""
