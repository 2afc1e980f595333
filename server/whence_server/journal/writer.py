"""Group commit: all entries of one interval become one transaction on one thread.

A transaction that fails because the disk is full or failing is retried with growing pauses until
it succeeds: no appended entry is lost while the process lives. Meanwhile the writer is *stalled*:
running generations may append, new ones are refused. Any other failure is final.
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
    """Commits one batch at a time on the thread that owns the store's write connection.

    All methods must be called from the event loop's thread. The next batch fills while one is
    being committed.

    Attributes:
        pending: content of the next transaction; its owner adds to it, then calls `submit`.
        committed_position: position of the newest entry on disk.
        committed: notified after every transaction, and when the writer stalls or fails.
        error: final error after which nothing can be written; None if there is none.
        stall: error of the transaction that is being retried; None if there is none.
        status_changed: notified when `stall` or `error` changes.
        stall_reported: True once the stall is longer than the patience, when readers are told.
        patience_s: seconds of a stall after which readers are told.
        on_duration: called with the duration of every transaction, in seconds.
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
        self.stall_reported = False
        self.status_changed = Signal()
        self.on_duration: Callable[[float], None] = _ignore
        self._store = store
        # STRICT commits at the end of each iteration of the loop: entries become visible then.
        self._delay_s = 0.0 if durability is Durability.STRICT else commit_interval_s
        self._max_pending_bytes = max_pending_bytes
        self._on_commit = on_commit
        self._on_failure = on_failure
        self.patience_s = patience_s
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
        """Raise if running generations cannot append.

        Raises:
            JournalError: nothing more can be written.
        """
        if self.error is not None:
            # A new exception each time: a raised one collects tracebacks and contexts.
            raise type(self.error)(self.error.message) from self.error

    def check_writable(self) -> None:
        """Raise if no new generation can be recorded.

        Raises:
            JournalUnwritableError: the disk is full or failing at present.
            JournalError: nothing more can be written.
        """
        self.check()
        if self.stall is not None:
            raise type(self.stall)(self.stall.detail, self.stall.retry_after_s) from self.stall

    @property
    def overfull(self) -> bool:
        """True if more bytes than the bound are uncommitted."""
        in_flight = self._in_flight.num_bytes if self._in_flight else 0
        return self.pending.num_bytes + in_flight > self._max_pending_bytes

    def submit(self) -> None:
        """Schedule the commit of the pending batch."""
        if self._in_flight is None:
            if self._timer is None:
                self._timer = self._loop.call_later(self._delay_s, self._send)
            elif self.pending.num_bytes > self._max_pending_bytes:
                self._send()

    async def flush(self) -> None:
        """Wait until everything submitted so far is committed.

        Raises:
            JournalUnwritableError: the disk is full or failing at present.
            JournalError: it cannot be committed.
        """
        self.check_writable()
        last = self._hasten()
        while self._num_done < last:
            await self.committed.wait()
            self.check_writable()

    async def wait_writable(self, *, in_stall: bool = True) -> bool:
        """Wait while the writer is stalled, or more bytes than the bound are uncommitted.

        Args:
            in_stall: whether to wait while the writer is stalled.

        Returns:
            False if more bytes than the bound are uncommitted, as they may be in a stall.

        Raises:
            JournalError: nothing more can be written.
        """
        self.check()
        while in_stall if self.stall is not None else self.overfull:
            await self.committed.wait()
            self.check()
        return not self.overfull

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function on the writer's thread, between two transactions."""
        return await self._loop.run_in_executor(self._executor, function)

    def probe(self) -> None:
        """Commit now, even if nothing is pending, so that the stall of an idle store is noticed."""
        if self._in_flight is None and self.error is None:
            self._send()

    def fail_for_good(self, error: BaseException) -> None:
        """Note that nothing can be written any more."""
        if self.error is None:
            self._fail_for_good(self._in_flight or Batch(), error)

    async def close(self) -> None:
        """Commit the pending batch, if possible, and end the thread.

        Raises:
            JournalError: entries could not be committed.
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
        """Try to commit everything that is not on disk; a failure is final."""
        if self.stall is not None:
            self._resend()
        last = self._hasten()
        while self._num_done < last:
            await self.committed.wait()
            self.check()

    def _hasten(self) -> int:
        """Commit the pending batch without delay; return its number."""
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
        """Retry the failed transaction."""
        if self._timer is None:
            return  # The retry is running.
        self._cancel_timer()
        if self._in_flight is not None:
            self._write(self._in_flight)

    def _write(self, batch: Batch) -> None:
        future = self._loop.run_in_executor(self._executor, self._store.write, batch)
        future.add_done_callback(partial(self._on_done, batch, time.perf_counter()))

    def _on_done(self, batch: Batch, started_s: float, future: asyncio.Future[None]) -> None:
        error = future.exception()
        if isinstance(error, JournalUnwritableError) and not self._closing:
            self._stall(error)
            return
        if error is not None:
            self._in_flight = None
            self._fail_for_good(batch, error)
            return
        self._in_flight = None
        self._num_done += 1
        self.committed_position = max(self.committed_position, batch.last_position)
        self._end_stall()
        if self.pending and self.error is None:
            if self._urgent:
                self._send()
            else:
                self.submit()
        self._on_commit(batch)
        self.on_duration(time.perf_counter() - started_s)
        self.committed.notify()

    def _stall(self, error: JournalUnwritableError) -> None:
        first = self.stall is None
        self.stall = error
        if first:
            self._stalled_since_s = time.monotonic()
            self._retry_s = _FIRST_RETRY_S
            self._patience = self._loop.call_later(self.patience_s, self._report_stall)
            _log.critical(
                "the journal cannot be written at present (%s) and is tried again",
                error.detail,
                exc_info=error,
            )
        self._timer = self._loop.call_later(self._retry_s, self._resend)
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
        if first:
            self.committed.notify()
            self.status_changed.notify()

    def _report_stall(self) -> None:
        """Wake readers that follow a generation, which then get the stall's error."""
        self.stall_reported = True
        self._on_failure()

    def _end_stall(self) -> None:
        if self.stall is None:
            return
        self.stall, self.stall_reported = None, False
        if self._patience is not None:
            self._patience.cancel()
        stalled_s = time.monotonic() - self._stalled_since_s
        _log.warning("the journal is writable again after %.1f s; nothing is lost", stalled_s)
        self.status_changed.notify()

    def _fail_for_good(self, batch: Batch, error: BaseException) -> None:
        num_bytes = batch.num_bytes + self.pending.num_bytes
        _log.critical(
            "the journal can no longer be written; about %d bytes of entries after position %d are "
            "not on disk",
            num_bytes,
            self.committed_position,
            exc_info=error,
        )
        failure = JournalLostError(f"the journal can no longer be written: {error}")
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
            self.status_changed.notify()


def _ignore(_duration_s: float) -> None:
    """Ignore a duration."""
