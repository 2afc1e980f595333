"""The follower of the journal: its position, its retries, and the time that it leaves to others."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from telemetry_journal import MemoryJournal

from whence_server.telemetry.follower import Batch, DurableCursor, FollowOptions, JournalFollower


class RememberingHandler:
    """A handler that remembers positions, and fails where it is told to."""

    def __init__(self, *, marks: bool = False) -> None:
        self.handled: list[int] = []
        self.slices: list[int] = []
        self.failures: dict[int, Exception] = {}
        self.reported: list[Exception] = []
        self.is_failing = False
        self.is_closed = False
        self.gate = asyncio.Event()
        self.gate.set()
        self._marks = marks

    async def handle(self, batch: Batch) -> None:
        async for entries in batch:
            self.slices.append(0)
            for entry in entries:
                await self.gate.wait()
                if entry.position in self.failures:
                    raise self.failures.pop(entry.position)
                self.handled.append(entry.position)
                self.slices[-1] += 1
                if self._marks:
                    batch.mark_handled(entry.position)

    def note_progress(self) -> None:
        self.is_failing = False

    def note_failure(self, error: Exception) -> float:
        self.reported.append(error)
        self.is_failing = True
        return 7.5

    async def close(self) -> None:
        self.is_closed = True


class Clock:
    """Remembers how long was slept, and lets only the event loop run meanwhile."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    def read(self) -> float:
        return self.now


@pytest.fixture
def journal() -> MemoryJournal:
    journal = MemoryJournal()
    journal.append_generation("g", num_steps=20)
    return journal


@asynccontextmanager
async def following(
    journal: MemoryJournal,
    handler: RememberingHandler,
    *,
    durable: bool = True,
    clock: Clock | None = None,
    **options: float,
) -> AsyncIterator[JournalFollower]:
    clock = clock or Clock()
    follower = JournalFollower(
        journal,
        handler,
        DurableCursor(journal, "test") if durable else None,
        options=FollowOptions(**{"linger_s": 0.0, "batch_entries": 8, **options}),
        sleep=clock.sleep,
        clock=clock.read,
    )
    follower.start()
    try:
        yield follower
    finally:
        await follower.close()


def positions(journal: MemoryJournal) -> list[int]:
    return [entry.position for entry in journal.entries]


async def test_entries_are_handled_once_in_order_and_the_cursor_follows(journal):
    handler = RememberingHandler()
    async with following(journal, handler) as follower:
        assert await follower.flush(60)
        journal.append_generation("h", num_steps=3)
        assert await follower.flush(60)
    assert handler.handled == positions(journal)
    assert journal.cursors["test"] == len(journal.entries)
    assert handler.is_closed


async def test_a_follower_with_a_cursor_resumes_where_the_previous_one_ended(journal):
    before, after = RememberingHandler(), RememberingHandler()
    async with following(journal, before) as follower:
        assert await follower.flush(60)
    journal.append_generation("h", num_steps=3)
    async with following(journal, after) as follower:
        assert await follower.flush(60)
    assert before.handled + after.handled == positions(journal)


async def test_a_follower_without_a_cursor_begins_at_the_present_end(journal):
    handler, end = RememberingHandler(), len(journal.entries)
    async with following(journal, handler, durable=False) as follower:
        assert follower.measure_lag().num_entries == 0
        journal.append_generation("h", num_steps=3)
        assert await follower.flush(60)
    assert handler.handled == positions(journal)[end:]
    assert journal.cursors == {}


@pytest.mark.parametrize("marks", [True, False])
async def test_a_failed_batch_is_read_again_from_the_last_mark(journal, marks):
    handler, clock = RememberingHandler(marks=marks), Clock()
    error = handler.failures[5] = OSError("disk")
    async with following(journal, handler, clock=clock) as follower:
        assert await follower.flush(60)
    again = [] if marks else [1, 2, 3, 4]
    assert handler.handled == [1, 2, 3, 4, *again, *positions(journal)[4:]]
    assert handler.reported == [error]
    assert clock.slept.count(7.5) == 1
    assert not handler.is_failing


async def test_a_cursor_that_cannot_be_read_is_retried(journal, monkeypatch):
    handler, failures, cursor = (
        RememberingHandler(),
        [OSError("disk"), OSError("disk")],
        journal.read_cursor,
    )

    async def troubled(name: str) -> int:
        if failures:
            raise failures.pop()
        return await cursor(name)

    monkeypatch.setattr(journal, "read_cursor", troubled)
    async with following(journal, handler) as follower:
        assert await follower.flush(60)
    assert handler.handled == positions(journal)
    assert len(handler.reported) == 2


async def test_entries_join_one_batch_after_a_batch_that_is_not_full(journal):
    sizes: list[int] = []
    slept = asyncio.Event()

    class CountingHandler(RememberingHandler):
        async def handle(self, batch: Batch) -> None:
            sizes.append(len(batch.entries))
            await super().handle(batch)

    class BusyClock(Clock):
        async def sleep(self, seconds: float) -> None:
            if not self.slept:
                journal.append_generation("h", num_steps=1)
                journal.append_generation("i", num_steps=1)
            slept.set()
            await super().sleep(seconds)

    handler, clock, before = CountingHandler(), BusyClock(), len(journal.entries)
    async with following(journal, handler, clock=clock, linger_s=0.2) as follower:
        assert await follower.flush(60)
        await slept.wait()
        assert await follower.flush(60)
    assert before % 8, "the last batch is not full"
    assert sizes == [8] * (before // 8) + [before % 8, len(journal.entries) - before]
    assert clock.slept[0] == 0.2
    assert handler.handled == positions(journal)


@pytest.mark.parametrize(("max_slice_s", "sizes"), [(0.0, [1] * 8), (3600.0, [8])])
async def test_other_tasks_run_between_two_slices(max_slice_s, sizes):
    journal, handler = MemoryJournal(), RememberingHandler()
    journal.append_generation("g", num_steps=8)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    batch = Batch(journal.entries[:8], max_slice_s, lambda _: None)
    task = asyncio.create_task(other())
    await handler.handle(batch)
    task.cancel()
    assert handler.slices == sizes
    assert (turns >= 8) is (max_slice_s == 0)


async def test_flush_times_out_and_the_lag_counts_unhandled_entries(journal):
    handler, clock = RememberingHandler(), Clock()
    handler.gate.clear()
    async with following(journal, handler, clock=clock) as follower:
        assert not await follower.flush(0.05)
        clock.now += 60
        assert follower.measure_lag() == (len(journal.entries), 60.0)
        handler.gate.set()
        assert await follower.flush(60)
        assert follower.measure_lag() == (0, 0.0)
