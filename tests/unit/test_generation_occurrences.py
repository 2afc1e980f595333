"""Occurrences of running generations: what is recorded, in which order, and how much of it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from dying_engine import DyingEngine, Service, make_reader, request, service
from waiting import wait_until

from whence.v1 import generation_pb2 as g
from whence.v1.occurrence_pb2 import Occurrence
from whence_server.domain.engine import Cost, Turn
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import Code
from whence_server.generation.occurrences import MAX_OCCURRENCES
from whence_server.journal.verify import verify_journal

CANCEL = "whence.v1.GenerationService/CancelGeneration"
RESUMING_SPAN_ID = "2" * 16


class IdleEngine(DyingEngine):
    """Fake engine that takes requests and makes no step."""

    async def read_turns(self) -> AsyncIterator[Turn]:
        await asyncio.Event().wait()
        yield Turn(Cost(0, 0, 0, 0))


async def read_occurrences(run: Service, generation_id: str) -> list[Occurrence]:
    entries = await run.journal.read(generation_id, kinds={EntryKind.OCCURRENCE})
    return [Occurrence.FromString(entry.payload) for entry in entries]


def list_kinds(occurrences: list[Occurrence]) -> list[str | None]:
    return [occurrence.WhichOneof("occurrence") for occurrence in occurrences]


async def test_a_cancelling_call_is_recorded_with_its_origin(tmp_path: Path) -> None:
    run = await service(tmp_path, IdleEngine([]))
    generation_id = await run.start(request(1))
    caller = make_reader("3" * 16, "CancelGeneration").caller
    await run.generations.cancel(generation_id, caller)
    await run.generations.cancel(generation_id, caller)
    (occurrence,) = await read_occurrences(run, generation_id)
    told = occurrence.cancelled.caller
    assert (told.method, told.address, told.port) == (CANCEL, "127.0.0.1", 50_000)
    assert (told.trace_id, told.span_id, told.parent_span_id) == ("a" * 32, "3" * 16, "b" * 16)
    finished = await run.finished(generation_id)
    assert finished.finish_reason == g.FINISH_REASON_CANCELLED
    assert occurrence.time.ToNanoseconds() <= finished.end_time.ToNanoseconds()
    entries = await run.journal.read_committed(0)
    kinds = [entry.kind for entry in entries]
    assert kinds == [EntryKind.STARTED, EntryKind.OCCURRENCE, EntryKind.FINISHED]
    await run.close()
    assert verify_journal(tmp_path).intact


async def test_the_engines_end_and_return_are_recorded_with_the_steps_before(
    tmp_path: Path,
) -> None:
    run = await service(tmp_path, DyingEngine(deaths=[5]))
    generation_id = await run.start(request(1))
    finished = await run.finished(generation_id)
    assert finished.finish_reason == g.FINISH_REASON_LENGTH
    ended, resumed = await read_occurrences(run, generation_id)
    assert ended.engine_ended.detail == "the engine process ended: signal 9"
    assert resumed.HasField("engine_resumed")
    # The fake engine dies with its fifth turn, which is not sent.
    assert (ended.num_steps, resumed.num_steps) == (4, 4)
    assert ended.time.ToNanoseconds() <= resumed.time.ToNanoseconds()
    await run.close()


async def test_a_generation_admitted_after_the_engines_end_has_no_such_occurrence(
    tmp_path: Path,
) -> None:
    engine = DyingEngine(deaths=[3])
    run = await service(tmp_path, engine)
    first = await run.start(request(1))
    await engine.restarted.wait()
    second = await run.start(request(2))
    await asyncio.gather(run.finished(first), run.finished(second))
    assert list_kinds(await read_occurrences(run, first)) == ["engine_ended", "engine_resumed"]
    assert await read_occurrences(run, second) == []
    await run.close()


@pytest.mark.parametrize(
    ("is_late", "status"), [(False, Code.CANCELLED), (True, Code.DEADLINE_EXCEEDED)]
)
async def test_a_call_that_leaves_and_one_that_comes_back_are_recorded(
    tmp_path: Path, is_late: bool, status: Code
) -> None:
    run = await service(tmp_path, IdleEngine([]))
    generation_id = await run.start(replace(request(1), disconnect_grace_s=60))
    first = run.generations.follow(generation_id, 0, make_reader(is_late=is_late))
    assert (await anext(first))[-1].offset == 1
    waiting = asyncio.ensure_future(anext(first))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    again = make_reader(RESUMING_SPAN_ID, "ResumeGeneration")
    second = run.generations.follow(generation_id, 1, again)
    waiting = asyncio.ensure_future(anext(second))
    await asyncio.sleep(0)
    await run.generations.cancel(generation_id, again.caller)
    assert (await waiting)[-1].kind is EntryKind.FINISHED
    await second.aclose()
    left, joined, cancelled = await read_occurrences(run, generation_id)
    assert (left.reader_left.status_code, left.reader_left.last_offset) == (status.value, 1)
    assert left.reader_left.num_readers == 0
    assert left.reader_left.caller.method == "whence.v1.GenerationService/Generate"
    assert (joined.reader_joined.after_offset, joined.reader_joined.num_readers) == (1, 1)
    assert joined.reader_joined.caller.span_id == RESUMING_SPAN_ID
    assert cancelled.HasField("cancelled")
    await run.close()


async def test_a_generation_without_a_reader_is_cancelled_with_the_time(tmp_path: Path) -> None:
    run = await service(tmp_path, IdleEngine([]))
    generation_id = await run.start(replace(request(1), disconnect_grace_s=0.01))
    reading = run.generations.follow(generation_id, 0, make_reader())
    await anext(reading)
    await reading.aclose()
    await wait_until(lambda: run.generations.num_running == 0)
    finished = await run.finished(generation_id)
    assert finished.finish_reason == g.FINISH_REASON_CANCELLED
    occurrences = await read_occurrences(run, generation_id)
    assert list_kinds(occurrences)[0] == "reader_left"
    assert occurrences[-1].cancelled.without_reader.ToMilliseconds() == 10
    await run.close()


async def test_the_passing_of_max_duration_is_recorded(tmp_path: Path) -> None:
    run = await service(tmp_path, IdleEngine([]))
    generation_id = await run.start(replace(request(1), max_duration_s=0.02))
    finished = await run.finished(generation_id)
    assert finished.finish_reason == g.FINISH_REASON_TIMEOUT
    (occurrence,) = await read_occurrences(run, generation_id)
    assert occurrence.max_duration_passed.max_duration.ToMilliseconds() == 20
    await run.close()


async def test_readers_that_come_and_go_forever_do_not_fill_the_journal(tmp_path: Path) -> None:
    run = await service(tmp_path, IdleEngine([]))
    generation_id = await run.start(replace(request(1), disconnect_grace_s=60))
    for _ in range(MAX_OCCURRENCES):
        reading = run.generations.follow(generation_id, 0, make_reader(RESUMING_SPAN_ID))
        await anext(reading)
        await reading.aclose()
    await run.generations.cancel(generation_id, make_reader().caller)
    kinds = list_kinds(await read_occurrences(run, generation_id))
    assert len(kinds) == MAX_OCCURRENCES + 1
    assert kinds[-1] == "cancelled"
    await run.close()
