"""Followers get every entry once and in order, at any pace, with bounded memory."""

import asyncio
import gc
import itertools
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journal_cases import (
    FINISH,
    append_steps,
    collect,
    create,
    finish,
    settle,
    take,
    whole,
)
from sealed_journals import make_options
from store_hooks import StoreHooks
from waiting import wait_until

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import GenerationNotFoundError
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability
from whence_server.journal.signal import Signal


@pytest.fixture
def hooks():
    return StoreHooks()


FORMS = [
    *itertools.product(Durability, ["sqlite"], [None, "sealed"]),
    *itertools.product(Durability, ["postgres"], [None]),
    (Durability.GROUP, "postgres", "sealed"),
]
"""Durabilities, databases and forms of content."""


@pytest.fixture(params=FORMS, ids=str)
async def journal(request, tmp_path, hooks, use_store):
    durability, store, form = request.param
    keys = use_store(store)
    journal = await Journal.open(
        tmp_path / "data",
        durability=durability,
        tail_entries=4,
        open_store=hooks.open_store,
        sealing=make_options(tmp_path / "master.key", keys) if form else None,
    )
    yield journal
    await journal.close()


IN_CLEAR = pytest.mark.parametrize(
    "journal", [(durability, "sqlite", None) for durability in Durability], indirect=True, ids=str
)
"""Mark of tests that count stored bytes, of which encryption makes more."""


def payloads(entries):
    return [entry.payload for entry in entries]


async def test_follower_that_keeps_up_gets_single_entries(journal):
    create(journal, "g")
    reader = journal.follow("g")
    assert payloads(await anext(reader)) == [b"started"]
    for i in range(20):
        append_steps(journal, "g", b"%d" % i)
        assert payloads(await anext(reader)) == [b"%d" % i]
    finish(journal, "g")
    assert payloads(await collect(reader)) == [b"finished"]


@IN_CLEAR
async def test_lagging_follower_gets_batches(journal):
    create(journal, "g")
    reader = journal.follow("g", max_batch_bytes=30)
    await anext(reader)
    append_steps(journal, "g", *(b"0123456789" for _ in range(7)))
    journal.append("g", EntryKind.STEP, b"larger than any batch " * 3)
    await journal.flush()
    finish(journal, "g")
    assert [len(batch) async for batch in reader] == [3, 3, 1, 1, 1]


async def test_follower_of_a_generation_gets_no_call_entries(journal):
    create(journal, "g")
    journal.record_call("g", b"call")
    finish(journal, "g")
    assert payloads(await collect(journal.follow("g"))) == [b"started", b"finished"]


@pytest.mark.parametrize("after", [0, 1, 4, 5, 6, 2**64 - 1])
@pytest.mark.parametrize("when", ["running", "finished", "committed"])
async def test_follower_always_gets_finished(journal, after, when):
    create(journal, "g")
    append_steps(journal, "g", b"a", b"b", b"c")
    reading = None
    if when == "running":
        reading = asyncio.ensure_future(collect(journal.follow("g", after)))
        await settle()
    finish(journal, "g")
    if when == "committed":
        await journal.flush()
    entries = await (reading or collect(journal.follow("g", after)))
    assert [e.offset for e in entries] == list(range(min(after + 1, 5), 6))
    assert entries[-1].kind is EntryKind.FINISHED


async def test_following_an_unknown_generation_is_refused(journal):
    with pytest.raises(GenerationNotFoundError, match="is not on record"):
        await collect(journal.follow("g"))


async def test_closed_follower_leaves_no_waiter(journal):
    create(journal, "g")
    readers = [asyncio.ensure_future(collect(journal.follow("g"))) for _ in range(5)]
    await journal.flush()
    await settle()
    changed = journal._log.get_live("g").changed
    assert len(changed._waiters) == 5
    for reader in readers[:4]:
        reader.cancel()
    await settle()
    assert len(changed._waiters) == 1
    finish(journal, "g")
    assert len(await readers[4]) == 2


async def test_waiting_follower_does_not_poll(tmp_path):
    journal = await Journal.open(tmp_path)
    create(journal, "g")
    await journal.flush()
    reader = asyncio.ensure_future(collect(journal.follow("g", 1)))
    watcher = asyncio.ensure_future(collect(journal.follow_all()))
    await settle()
    loop = asyncio.get_running_loop()
    await settle()
    assert not loop._ready
    assert not [handle for handle in loop._scheduled if not handle.cancelled()]
    reader.cancel()
    watcher.cancel()
    await asyncio.wait([reader, watcher])
    await journal.close()


async def test_follow_all_starts_at_a_position_or_at_the_end(journal):
    whole(journal, "a", 1)
    await journal.flush()
    late = journal.follow_all()
    whole(journal, "b", 1)
    journal.record_call("b", b"call")
    early = await take(journal.follow_all(1), 6)
    assert [e.position for e in early] == [2, 3, 4, 5, 6, 7]
    assert [(e.position, e.generation_id) for e in await take(late, 4)] == [
        (4, "b"), (5, "b"), (6, "b"), (7, "b"),
    ]  # fmt: skip


@IN_CLEAR
async def test_follow_all_obeys_the_batch_size(journal):
    whole(journal, "a", 5)
    await journal.flush()
    reader = journal.follow_all(0, max_batch_bytes=13)
    sizes = [len(await anext(reader)) for _ in range(4)]
    assert sizes == [2, 2, 2, 1]


# ---- every entry, once, in order ----

GENERATIONS = ("g0", "g1", "g2")
operations = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.sampled_from(GENERATIONS), st.binary(max_size=40)),
        st.tuples(st.just("append"), st.sampled_from(GENERATIONS), st.binary(max_size=40)),
        st.tuples(st.just("finish"), st.sampled_from(GENERATIONS)),
        st.tuples(st.just("call"), st.sampled_from(("", *GENERATIONS))),
        st.tuples(
            st.just("follow"),
            st.sampled_from(GENERATIONS),
            st.integers(0, 30),
            st.integers(1, 100),
        ),
        st.tuples(st.just("watch"), st.none() | st.integers(0, 20), st.integers(1, 100)),
        st.tuples(st.just("turns"), st.integers(1, 4)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("reopen")),
    ),
    max_size=40,
)


class Play:
    """Operations on a journal and on a model of its expected content."""

    def __init__(self, directory, durability):
        self._directory = directory
        self._durability = durability
        self.log = []
        self.own = {}
        self._followed = []
        self._watched = []

    async def run(self, operations):
        await self._open()
        for operation, *arguments in operations:
            await getattr(self, "_" + operation)(*arguments)
        for generation_id in GENERATIONS:
            await self._finish(generation_id)
        await self._check()
        await self.journal.close()

    async def _open(self):
        self.journal = await Journal.open(
            self._directory, durability=self._durability, commit_interval_s=0.0005, tail_entries=3
        )

    def _add(self, generation_id, kind, payload):
        own = self.own.setdefault(generation_id, [])
        outside = kind is EntryKind.CALL
        offset = 0 if outside else len(own) + 1
        entry = Entry(len(self.log) + 1, generation_id, offset, kind, payload)
        self.log.append(entry)
        if not outside:
            own.append(entry)

    def _create(self, generation_id):
        if generation_id not in self.own:
            create(self.journal, generation_id)
            self._add(generation_id, EntryKind.STARTED, b"started")

    def _is_finished(self, generation_id):
        return self.own[generation_id][-1].kind is EntryKind.FINISHED

    async def _append(self, generation_id, payload):
        self._create(generation_id)
        if not self._is_finished(generation_id):
            self.journal.append(generation_id, EntryKind.STEP, payload)
            self._add(generation_id, EntryKind.STEP, payload)

    async def _finish(self, generation_id):
        self._create(generation_id)
        if not self._is_finished(generation_id):
            self.journal.finish(generation_id, b"end", FINISH)
            self._add(generation_id, EntryKind.FINISHED, b"end")

    async def _call(self, generation_id):
        if generation_id:
            self._create(generation_id)
        self.journal.record_call(generation_id, b"call")
        self.log.append(Entry(len(self.log) + 1, generation_id, 0, EntryKind.CALL, b"call"))

    async def _follow(self, generation_id, after, max_bytes):
        self._create(generation_id)
        reading = collect(self.journal.follow(generation_id, after, max_bytes))
        self._followed.append((asyncio.ensure_future(reading), generation_id, after))

    async def _watch(self, after, max_bytes):
        after = None if after is None else min(after, len(self.log))
        watcher = self.journal.follow_all(after, max_bytes)
        seen, news = [], Signal()

        async def watch():
            async for batch in watcher:
                seen.extend(batch)
                news.notify()

        task = asyncio.ensure_future(watch())
        self._watched.append((task, seen, news, len(self.log) if after is None else after))

    async def _turns(self, num_turns):
        for _ in range(num_turns):
            await asyncio.sleep(0)

    async def _flush(self):
        await self.journal.flush()

    async def _reopen(self):
        """Ends every generation that is followed, so that no reader is cut off."""
        for generation_id in {followed[1] for followed in self._followed}:
            await self._finish(generation_id)
        await self._check()
        await self.journal.close()
        await self._open()
        running = {g for g in self.own if not self._is_finished(g)}
        assert set(self.journal.list_unfinished()) == running

    async def _check(self):
        await self.journal.flush()
        for task, generation_id, after in self._followed:
            own = self.own[generation_id]
            assert await task == own[min(after, len(own) - 1) :]
        for task, seen, news, after in self._watched:
            while len(seen) < len(self.log) - after:
                await news.wait()
            task.cancel()
            await asyncio.wait([task])
            assert seen == self.log[after:]
        self._followed, self._watched = [], []
        report = await self.journal.verify()
        assert (report.num_entries, report.intact) == (len(self.log), True)


@pytest.mark.parametrize("durability", Durability)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations)
def test_followers_see_exactly_the_entries_in_order_once(durability, operations):
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(asyncio.wait_for(Play(Path(name), durability).run(operations), 30))


# ---- a stalled reader ----


async def test_stalled_follower_takes_bounded_memory_and_delays_no_other(tmp_path):
    num_steps, tail_entries = 400, 16
    journal = await Journal.open(tmp_path, tail_entries=tail_entries, commit_interval_s=0.001)
    create(journal, "slow")
    stalled = journal.follow("slow")
    await anext(stalled)
    names = [f"g{i}" for i in range(100)]
    for name in names:
        create(journal, name)
    readers = [asyncio.ensure_future(collect(journal.follow(name))) for name in names]
    marker = b"held by nobody "
    for step in range(num_steps):
        append_steps(journal, "slow", marker + b"%d" % step)
        if step % 20 == 0:
            for name in names:
                append_steps(journal, name, b"x")
            await journal.flush()
    for name in names:
        finish(journal, name)
    assert {len(entries) for entries in await asyncio.gather(*readers)} == {num_steps // 20 + 2}
    await journal.flush()
    # The tail, and what was appended since the last commit.
    assert tail_entries <= _num_held(marker) <= tail_entries + 20
    finish(journal, "slow")
    await journal.flush()
    # The writer's thread lets go of what it has committed a moment after it said so.
    await wait_until(lambda: _num_held(marker) == 0)
    rest = await collect(stalled)
    assert [e.offset for e in rest] == list(range(2, num_steps + 3))
    await journal.close()


def _num_held(marker):
    """Count the Entry objects in the process."""
    gc.collect()
    return sum(
        o.payload.startswith(marker)
        for o in gc.get_objects()
        # Not isinstance: it asks every object of the process for its class, and some warn.
        if type(o) is Entry
    )


async def test_read_committed_ends_at_the_event_loops_committed_position(journal, hooks):
    """The writer's thread has committed, and the event loop has not processed it yet."""
    written, heard = threading.Event(), threading.Event()

    def hold():
        written.set()
        assert heard.wait(30)

    hooks.after_write = hold
    create(journal, "g")
    await asyncio.to_thread(written.wait)
    found = await journal.read_committed(0)
    heard.set()
    assert found == []
    await journal.wait_committed(0)
    (entry,) = await journal.read_committed(0)
    journal.advance("cursor", entry.position)
