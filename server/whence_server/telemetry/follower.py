"""Follower of the journal: reads committed entries and passes them to a handler in batches.

The span exporter, the events exporter and the metrics are handlers. The follower owns their
common parts: the task, the position, the lag, flushing, retrying, and yielding to other tasks.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from whence_server.domain.entries import Entry
from whence_server.telemetry.journal import CommittedLog, CursorStore
from whence_server.telemetry.lag import Lag, LagClock


class BatchHandler(Protocol):
    """Receiver of the entries that a follower reads."""

    async def handle(self, batch: "Batch") -> None:
        """Handle a batch in order; the whole batch counts as handled when this returns.

        An exception is passed to `note_failure`. The follower then reads again from the position
        that was marked last.
        """
        ...

    def note_progress(self) -> None:
        """Note that the position has moved, so that an earlier failure is over."""
        ...

    def note_failure(self, error: Exception) -> float:
        """Report a failure of the journal or of `handle`; return the seconds until a retry."""
        ...

    async def close(self) -> None:
        """Release the handler's resources; called once, after following has ended."""
        ...


class Batch:
    """Committed entries, iterated in short slices that keep the event loop responsive.

    `async for entries in batch` yields slices; `for entry in entries` ends when the slice's time
    is used up. Other tasks run between two slices.

    Args:
        entries: in order; at least one.
        max_slice_s: time after which a slice ends; the entry under way is completed.
        mark_handled: moves the follower to a position.

    Attributes:
        entries: all entries of the batch, for handlers that read ahead.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        max_slice_s: float,
        mark_handled: Callable[[int], None],
    ) -> None:
        self.entries = entries
        self._mark_handled = mark_handled
        self._max_slice_s = max_slice_s
        self._next = 0
        self._is_used_up = False

    def mark_handled(self, position: int) -> None:
        """Move the follower to a position; it will not read entries up to there again."""
        self._mark_handled(position)

    def __aiter__(self) -> "Batch":
        """Return the batch itself, which can be iterated once."""
        return self

    async def __anext__(self) -> Iterator[Entry]:
        """Return the next slice, after other tasks have run."""
        if self._is_used_up:
            await asyncio.sleep(0)
        if self._next == len(self.entries):
            raise StopAsyncIteration
        return self._take_slice()

    def _take_slice(self) -> Iterator[Entry]:
        clock, entries = time.perf_counter, self.entries
        end = clock() + self._max_slice_s
        self._is_used_up = False
        for place in range(self._next, len(entries)):
            yield entries[place]
            self._next = place + 1
            if clock() > end:
                self._is_used_up = True
                return


@dataclass(frozen=True, slots=True)
class FollowOptions:
    """Pace of a follower.

    Attributes:
        batch_entries: most entries of one batch.
        linger_s: time to wait after a commit, and after a batch that is not full, so that further
            entries join the next batch.
        max_slice_s: longest time for which the event loop is kept from other tasks.
    """

    batch_entries: int = 512
    linger_s: float = 0.2
    max_slice_s: float = 0.000_25


class DurableCursor:
    """Position of a follower that is stored in the journal, so that the next process resumes there.

    Args:
        store: the journal.
        name: name of the cursor; each destination has its own.
    """

    def __init__(self, store: CursorStore, name: str) -> None:
        self._store = store
        self._name = name

    async def load(self) -> int:
        """Return the position; 0 for a new cursor."""
        return await self._store.read_cursor(self._name)

    def save(self, position: int) -> None:
        """Store the position; durable with the journal's next commit."""
        self._store.advance(self._name, position)


class JournalFollower:
    """Task that passes every committed entry to a handler, in order and at least once.

    Args:
        journal: the log to follow.
        handler: receives the batches; closed with the follower.
        cursor: stores the position and gives the first one. None: begin at the journal's
            present end, and store no position.
        options: pace of the follower.
        name: name of the asyncio task.
        sleep: waits for a number of seconds.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        journal: CommittedLog,
        handler: BatchHandler,
        cursor: DurableCursor | None,
        *,
        options: FollowOptions = FollowOptions(),
        name: str = "journal-follower",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._handler = handler
        self._cursor = cursor
        self._options = options
        self._name = name
        self._sleep = sleep
        self._lag_clock = LagClock(clock)
        self._position = journal.committed_position if cursor is None else None
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start following in the running event loop."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    def measure_lag(self) -> Lag:
        """Return the follower's distance from the newest committed entry."""
        self._observe()
        num_entries = self._journal.committed_position - (self._position or 0)
        return Lag(num_entries, self._lag_clock.measure_oldest_s())

    async def flush(self, timeout_s: float) -> bool:
        """Wait until every entry committed by now is handled; return False if time ran out."""
        target = self._journal.committed_position
        try:
            async with asyncio.timeout(timeout_s):
                while self._position is None or self._position < target:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop at once and close the handler; a cursor resumes after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._handler.close()

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001 - the handler reports it; following goes on
                await self._sleep(self._handler.note_failure(error))

    async def _follow(self) -> None:
        if self._position is None and self._cursor is not None:
            self._move(await self._cursor.load())
        while True:
            await self._handle_next(self._position or 0)

    async def _handle_next(self, position: int) -> None:
        """Handle the entries after a position, or wait until there are some."""
        self._observe()
        entries = await self._journal.read_committed(position, self._options.batch_entries)
        if not entries:
            await self._journal.wait_committed(position)
            self._observe()
            await self._sleep(self._options.linger_s)
            return
        await self._handler.handle(Batch(entries, self._options.max_slice_s, self._mark_handled))
        if self._position != entries[-1].position:
            self._mark_handled(entries[-1].position)
        if len(entries) < self._options.batch_entries:
            # Few entries were committed meanwhile, and a batch of few costs as much as a full one.
            await self._sleep(self._options.linger_s)

    def _mark_handled(self, position: int) -> None:
        if self._cursor is not None:
            self._cursor.save(position)
        self._move(position)

    def _move(self, position: int) -> None:
        self._position = position
        self._handler.note_progress()
        self._observe()
        self._moved.set()

    def _observe(self) -> None:
        self._lag_clock.observe(self._journal.committed_position, self._position or 0)
