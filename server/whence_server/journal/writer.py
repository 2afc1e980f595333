"""Group commit: what was appended in one interval becomes one transaction on one thread.

A transaction that fails because the disk is full or out of order is kept and tried again, with
growing pauses, until it succeeds: nothing that was appended is lost as long as the process lives.
Meanwhile the writer is *stalled*: it takes what running generations still append, and refuses
new ones. Any other failure is final.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from whence_server.domain.errors import (
    JournalError,
    JournalLostError,
    JournalUnwritableError,
)
from whence_server.journal.rows import Durability
from whence_server.journal.signal import Signal
from whence_server.journal.store import Batch, Store

_log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 5.0
DEFAULT_PATIENCE_S = 2.0


class Writer:
    """Sends one batch at a time to the thread that owns the store's write connection.

    All methods are called from the event loop's thread. While a batch is being committed, the
    next one gathers.

    Attributes:
        pending: what the next transaction will hold; its owner adds to it, then calls `submit`.
        committed_position: everything up to it is on disk.
        committed: notified after every transaction, and when the writer stalls or fails.
        error: why nothing more can be written, once that is so.
        stall: why the transaction under way fails, as long as it does and is tried again.
        standing: notified when `stall` or `error` changes.
        told: whether the stall has outlasted the patience, so that readers learn of it.
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
        patience_s: float = DEFAULT_PATIENCE_S,
    ) -> None:
        self.pending = Batch()
        self.committed_position = committed_position
        self.committed = Signal()
        self.error: JournalError | None = None
        self.stall: JournalUnwritableError | None = None
        self.told = False
        self.standing = Signal()
        self.on_time: Callable[[float], None] = _ignore
        self._store = store
        # STRICT commits what one turn of the loop appended: nobody sees it any sooner.
        self._delay_s = 0.0 if durability is Durability.STRICT else commit_interval_s
        self._max_pending_bytes = max_pending_bytes
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1, "journal-writer")
        self._timer: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._retry_s = _FIRST_RETRY_S
        self._stalled_since_s = 0.0
        self._in_flight: Batch | None = None
        self._num_sent = 0
        self._num_done = 0
        self._urgent = False
        self._closing = False

    def check(self) -> None:
        """Return as long as the journal takes what running generations append.

        Raises:
            JournalError: nothing more can be written.
        """
        if self.error is not None:
            # A new one each time: a raised exception collects tracebacks and contexts.
            raise type(self.error)(self.error.message) from self.error

    def check_writable(self) -> None:
        """Return as long as new work can be put on record.

        Raises:
            JournalUnwritableError: not at present.
            JournalError: nothing more can be written.
        """
        self.check()
        if self.stall is not None:
            raise type(self.stall)(self.stall.detail, self.stall.retry_after_s) from self.stall

    @property
    def overfull(self) -> bool:
        """Whether more bytes than the bound are not on disk yet."""
        in_flight = self._in_flight.num_bytes if self._in_flight else 0
        return self.pending.num_bytes + in_flight > self._max_pending_bytes

    def submit(self) -> None:
        """See to it that what is pending will be committed."""
        if self._in_flight is None:
            if self._timer is None:
                self._timer = self._loop.call_later(self._delay_s, self._send)
            elif self.pending.num_bytes > self._max_pending_bytes:
                self._send()

    async def flush(self) -> None:
        """Return once all that was submitted so far is committed.

        Raises:
            JournalUnwritableError: it could not be, so far.
            JournalError: it cannot be.
        """
        self.check_writable()
        last = self._hasten()
        while self._num_done < last:
            await self.committed.wait()
            self.check_writable()

    async def writable(self) -> None:
        """Wait while the writer is stalled, or more bytes than the bound are not on disk yet.

        Raises:
            JournalError: nothing more can be written.
        """
        self.check()
        while self.stall is not None or self.overfull:
            await self.committed.wait()
            self.check()

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function on the writer's thread, between two transactions."""
        return await self._loop.run_in_executor(self._executor, function)

    async def close(self) -> None:
        """Commit what is pending, if it can, and ends the thread.

        Raises:
            JournalError: something could not be committed.
        """
        self._closing = True
        try:
            if self.error is None:
                await self._commit_last()
        finally:
            for timer in (self._timer, self._patience):
                if timer is not None:
                    timer.cancel()
            self._fail(JournalError("the journal is closed"))
            await asyncio.to_thread(self._executor.shutdown)

    async def _commit_last(self) -> None:
        """Try everything that is not on disk once more: a failure is final now."""
        if self.stall is not None:
            self._resend()
        last = self._hasten()
        while self._num_done < last:
            await self.committed.wait()
            self.check()

    def _hasten(self) -> int:
        """Have everything submitted committed without delay; returns the number of its batch."""
        if not self.pending:
            return self._num_sent
        if self._in_flight is None:
            self._send()
            return self._num_sent
        self._urgent = True
        return self._num_sent + 1

    def _send(self) -> None:
        self._cancel_timer()
        batch, self.pending = self.pending, Batch()
        self._in_flight = batch
        self._urgent = False
        self._num_sent += 1
        self._write(batch)

    def _resend(self) -> None:
        """Try the transaction that failed once more."""
        if self._timer is None:
            return  # It is under way.
        self._cancel_timer()
        if self._in_flight is not None:
            self._write(self._in_flight)

    def _write(self, batch: Batch) -> None:
        future = self._loop.run_in_executor(self._executor, self._store.write, batch)
        future.add_done_callback(partial(self._done, batch, time.perf_counter()))

    def _done(self, batch: Batch, started_s: float, future: asyncio.Future[None]) -> None:
        error = future.exception()
        if isinstance(error, JournalUnwritableError) and not self._closing:
            self._stall(error)
            return
        if error is not None:
            self._in_flight = None
            self._lose(batch, error)
            return
        self._in_flight = None
        self._num_done += 1
        self.committed_position = max(self.committed_position, batch.last_position)
        self._recovered()
        if self.pending and self.error is None:
            if self._urgent:
                self._send()
            else:
                self.submit()
        self._on_commit(batch)
        self.on_time(time.perf_counter() - started_s)
        self.committed.notify()

    def _stall(self, error: JournalUnwritableError) -> None:
        first = self.stall is None
        self.stall = error
        if first:
            self._stalled_since_s = time.monotonic()
            self._retry_s = _FIRST_RETRY_S
            self._patience = self._loop.call_later(self._patience_s, self._tell)
            _log.critical(
                "%s; nothing new is admitted, running generations wait", error, exc_info=error
            )
        self._timer = self._loop.call_later(self._retry_s, self._resend)
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
        if first:
            self.committed.notify()
            self.standing.notify()

    def _tell(self) -> None:
        """Let those who follow a generation know that its journal is stalled."""
        self.told = True
        self._on_failure()

    def _recovered(self) -> None:
        if self.stall is None:
            return
        self.stall, self.told = None, False
        if self._patience is not None:
            self._patience.cancel()
        stalled_s = time.monotonic() - self._stalled_since_s
        _log.warning("the journal can be written again, after %.1f s; nothing is lost", stalled_s)
        self.standing.notify()

    def _lose(self, batch: Batch, error: BaseException) -> None:
        num_bytes = batch.num_bytes + self.pending.num_bytes
        _log.critical(
            "the journal cannot be written any more; about %d bytes of entries after position %d "
            "are not on disk",
            num_bytes,
            self.committed_position,
            exc_info=error,
        )
        failure = JournalLostError(f"the journal cannot be written any more: {error}")
        failure.__cause__ = error
        self._fail(failure)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fail(self, error: JournalError) -> None:
        if self.error is None:
            self.error, self.stall = error, None
            self._on_failure()
            self.committed.notify()
            self.standing.notify()


def _ignore(_duration_s: float) -> None:
    """Nobody asked."""
