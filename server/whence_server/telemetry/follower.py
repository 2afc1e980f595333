"""Follower of the journal: reads what is committed and gives it to a handler in batches.

The span exporter, the events exporter and the metrics are handlers. The follower owns what they
have in common: the task, the position, the lag, flushing, retrying, and giving way to other tasks.
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
    """Receiver of what a follower reads."""

    async def handle(self, batch: "Batch") -> None:
        """Handle a batch in order. All of it counts as handled when this returns.

        What this raises goes to `note_failure`. The follower then reads again from the position
        that was marked last.
        """
        ...

    def note_progress(self) -> None:
        """Note that the position has moved: an earlier failure is over."""
        ...

    def note_failure(self, error: Exception) -> float:
        """Report a failure of the journal or of `handle`; return the seconds until a retry."""
        ...

    async def close(self) -> None:
        """Release what the handler holds; called once following has ended."""
        ...


class Batch:
    """Committed entries, iterated in slices, so that the event loop is never kept for long.

    `async for entries in batch` yields slices; `for entry in entries` ends when the slice's time
    is used up. Other tasks run between two slices.

    Args:
        entries: in order; at least one.
        max_slice_s: the longest that a slice takes, but for its last entry.
        mark_handled: moves the follower.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        max_slice_s: float,
        mark_handled: Callable[[int], None],
    ) -> None:
        self._mark_handled = mark_handled
        self._entries = entries
        self._max_slice_s = max_slice_s
        self._next = 0
        self._is_used_up = False

    def mark_handled(self, position: int) -> None:
        """Move the follower to a position: it will not read again what lies before."""
        self._mark_handled(position)

    def __aiter__(self) -> "Batch":
        """Return the batch itself, which can be iterated once."""
        return self

    async def __anext__(self) -> Iterator[Entry]:
        """Return the next slice, after other tasks had their turn."""
        if self._is_used_up:
            await asyncio.sleep(0)
        if self._next == len(self._entries):
            raise StopAsyncIteration
        return self._slice()

    def _slice(self) -> Iterator[Entry]:
        end = time.perf_counter() + self._max_slice_s
        self._is_used_up = False
        while self._next < len(self._entries) and not self._is_used_up:
            yield self._entries[self._next]
            self._next += 1
            self._is_used_up = time.perf_counter() > end


@dataclass(frozen=True, slots=True)
class FollowOptions:
    """Pace of a follower.

    Attributes:
        batch_entries: read at a time.
        linger_s: time that new entries are left to gather into a batch.
        max_slice_s: the longest that the event loop is kept from other work.
    """

    batch_entries: int = 512
    linger_s: float = 0.2
    max_slice_s: float = 0.000_25


class DurableCursor:
    """A position that the journal keeps: the next process goes on from there.

    Args:
        store: the journal.
        name: one destination, one cursor.
    """

    def __init__(self, store: CursorStore, name: str) -> None:
        self._store = store
        self._name = name

    async def load(self) -> int:
        """Return the position; 0 for a new cursor."""
        return await self._store.read_cursor(self._name)

    def save(self, position: int) -> None:
        """Keep the position; durable with the journal's next commit."""
        self._store.advance(self._name, position)


class JournalFollower:
    """Gives a handler everything that the journal commits, each entry at least once, in order.

    Args:
        journal: what to follow.
        handler: gets the batches; closed with the follower.
        cursor: where to begin, and where the position is kept. None: begin at the journal's
            present end, and keep no position.
        options: the pace.
        name: of the task.
        sleep: takes seconds.
        clock: gives seconds, never going back.
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

    def lag(self) -> Lag:
        """Return the follower's distance from the newest committed entry."""
        self._observe()
        num_entries = self._journal.committed_position - (self._position or 0)
        return Lag(num_entries, self._lag_clock.oldest_s())

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all that is committed by now was handled; return False if time ran out."""
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
        """Stop at once and close the handler; a cursor goes on after the next start."""
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
            await self._turn(self._position or 0)

    async def _turn(self, position: int) -> None:
        """Have the entries beyond the position handled, or wait until there are some."""
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
