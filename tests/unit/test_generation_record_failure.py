"""Requests while the journal cannot be written: refused, or served without a record."""

import asyncio
from pathlib import Path

import pytest
from dying_engine import DyingEngine, Service, make_reader, request, token_of
from journal_cases import collect, index
from waiting import wait_until

from whence.v1 import generation_pb2 as g
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    GenerationExistsError,
    GenerationFailedError,
    GenerationNotFoundError,
    JournalFullError,
)
from whence_server.domain.limits import Limits
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.record_failure import RecordFailure
from whence_server.generation.unrecorded import Unrecorded
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability, FinishIndex

FINISH = FinishIndex(None, 0, "")


def named(generation_id: str, first: int = 1, digest: str = "d") -> GenerationRequest:
    return GenerationRequest(
        **{field: getattr(request(first), field) for field in ("input", "decoding")},
        digest=digest,
        generation_id=generation_id,
    )


async def serve_on_full_disk(
    tmp_path: Path, policy: RecordFailure, max_pending_bytes: int = 16 << 20
) -> Service:
    """Return a service whose journal has just found the disk full."""
    journal = await Journal.open(
        tmp_path, durability=Durability.GROUP, max_pending_bytes=max_pending_bytes
    )
    run = Service(journal, DyingEngine(deaths=[]), Limits(), policy)
    await journal.flush()
    connection = journal._store._connection
    connection.pragma("max_page_count", connection.pragma("page_count"))
    while journal.trouble is None:
        journal.record_call("", b"x" * 20_000)
        await asyncio.sleep(0)
    return run


def make_room(journal: Journal) -> None:
    journal._store._connection.pragma("max_page_count", 2**30)


async def read(run: Service, generation_id: str, after_offset: int = 0) -> list[Entry]:
    return await collect(run.generations.follow(generation_id, after_offset, make_reader()))


async def test_closed_refuses(tmp_path: Path) -> None:
    run = await serve_on_full_disk(tmp_path, RecordFailure.CLOSED)
    with pytest.raises(JournalFullError):
        await run.start(request(1))
    make_room(run.journal)
    await run.journal.wait_writable()
    generation_id = await run.start(request(1))
    assert (await run.finished(generation_id)).num_generated_tokens == 20
    await run.close()


async def test_open_serves_without_a_record_until_the_journal_is_writable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = await serve_on_full_disk(tmp_path, RecordFailure.OPEN)
    generation_id = await run.start(request(1))
    assert run.generations.get_unrecorded_reason(generation_id) == "JOURNAL_FULL"
    entries = await read(run, generation_id)
    started = g.GenerationStarted.FromString(entries[0].payload)
    finished = g.GenerationFinished.FromString(entries[-1].payload)
    assert (started.unrecorded_reason, started.generation_id) == ("JOURNAL_FULL", generation_id)
    assert list(finished.sequences[0].token_ids) == [token_of([1], i) for i in range(20)]
    assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))
    assert await read(run, generation_id, 5) == entries[5:]
    assert await read(run, generation_id, 2**40) == entries[-1:]
    assert await run.journal.look_up(generation_id) is None
    assert f"generation {generation_id} is served unrecorded" in caplog.text

    make_room(run.journal)
    await run.journal.wait_writable()
    recorded_id = await run.start(request(1))
    assert (await run.finished(recorded_id)).sequences == finished.sequences
    record = await run.journal.read(recorded_id)
    assert g.GenerationStarted.FromString(record[0].payload).unrecorded_reason == ""
    assert run.generations.num_unrecorded == 1
    assert (await run.journal.verify()).intact
    await run.close()


async def test_an_equal_request_joins_an_unrecorded_generation(tmp_path: Path) -> None:
    run = await serve_on_full_disk(tmp_path, RecordFailure.OPEN)
    generation_id = "00000000-0000-4000-8000-000000000001"
    await run.start(named(generation_id))
    await run.start(named(generation_id))
    assert run.generations.num_unrecorded == 1
    with pytest.raises(GenerationExistsError):
        await run.start(named(generation_id, digest="another"))
    assert (await run.finished(generation_id)).num_generated_tokens == 20
    make_room(run.journal)
    await run.close()


async def test_running_generations_go_on_until_memory_is_full(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, max_pending_bytes=60_000)
    run = Service(journal, DyingEngine(deaths=[]), Limits(), RecordFailure.OPEN)
    generation_id = await run.start(request(1, num_tokens=900))
    following = asyncio.ensure_future(run.finished(generation_id))
    await journal.flush()
    connection = journal._store._connection
    connection.pragma("max_page_count", connection.pragma("page_count"))
    while journal.trouble is None:
        await journal.trouble_changed.wait()
    finished = await following
    assert finished.finish_reason == g.FINISH_REASON_INTERRUPTED
    # It went on for what memory has room for: an entry has some 300 bytes.
    assert 100 < finished.num_generated_tokens < 900
    # Others are served meanwhile.
    unrecorded = await run.finished(await run.start(request(2)))
    assert unrecorded.finish_reason == g.FINISH_REASON_LENGTH
    make_room(journal)
    await journal.wait_writable()
    await journal.flush()
    record = await journal.read(generation_id)
    assert g.GenerationFinished.FromString(record[-1].payload) == finished
    assert (await journal.verify()).intact
    await run.close()


async def test_what_was_read_is_dropped_once_memory_is_full() -> None:
    unrecorded = Unrecorded(max_bytes=100)
    unrecorded.create(index("g"), b"started")
    following = unrecorded.follow("g", 0)
    assert [entry.payload for entry in await anext(following)] == [b"started"]
    for number in range(50):
        unrecorded.append("g", EntryKind.STEP, b"%040d" % number)
        (entry,) = await anext(following)
        assert (entry.offset, int(entry.payload)) == (number + 2, number)
    with pytest.raises(GenerationNotFoundError):
        await anext(unrecorded.follow("g", 0))
    unrecorded.finish("g", b"finished", FINISH)
    assert [entry.payload for entry in await anext(following)] == [b"finished"]
    assert [entry.payload for entry in await anext(unrecorded.follow("g", 52))] == [b"finished"]


async def test_a_generation_that_is_not_read_fails_once_memory_is_full() -> None:
    unrecorded = Unrecorded(max_bytes=100)
    unrecorded.create(index("g"), b"started")
    unrecorded.append("g", EntryKind.STEP, b"x" * 90)
    with pytest.raises(GenerationFailedError, match="more than 100 bytes") as caught:
        unrecorded.append("g", EntryKind.STEP, b"x" * 90)
    assert caught.value.reason == "UNRECORDED_NOT_READ"
    # Its end has room in any case.
    unrecorded.finish("g", b"y" * 90, FINISH)
    assert [e.offset for e in await collect(unrecorded.follow("g", 0))] == [1, 2, 3]


async def test_a_slow_reader_fails_its_own_generation_and_no_other() -> None:
    unrecorded = Unrecorded(max_bytes=1_000)
    for name in ("slow", "other"):
        unrecorded.create(index(name), b"started")
    stuck = unrecorded.follow("slow", 0)
    assert [entry.payload for entry in await anext(stuck)] == [b"started"]
    for _ in range(9):
        unrecorded.append("slow", EntryKind.STEP, b"x" * 100)
    following = unrecorded.follow("other", 0)
    await anext(following)
    for _ in range(20):
        unrecorded.append("other", EntryKind.STEP, b"y" * 100)
        assert [entry.payload for entry in await anext(following)] == [b"y" * 100]
    with pytest.raises(GenerationFailedError, match="its reader is slow"):
        unrecorded.append("slow", EntryKind.STEP, b"x")
    unrecorded.finish("slow", b"finished", FINISH)
    with pytest.raises(GenerationNotFoundError):
        await anext(stuck)
    unrecorded.finish("other", b"finished", FINISH)
    assert [entry.payload for entry in await anext(following)] == [b"finished"]


async def test_a_generation_is_forgotten_after_its_end() -> None:
    unrecorded = Unrecorded(max_bytes=100, kept_s=0.0)
    for name in ("a", "b"):
        unrecorded.create(index(name), b"started" * 10)
        unrecorded.finish(name, b"finished", FINISH)
        await wait_until(lambda name=name: unrecorded.find(name) is None)
    unrecorded.create(index("c"), b"started")
    assert unrecorded.append("c", EntryKind.STEP, b"x" * 90) == 2
