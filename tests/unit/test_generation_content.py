"""Content policies: the caller's stream is whole, and the record holds what the policy keeps."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dying_engine import DyingEngine, Service, make_reader, request, token_of
from journal_cases import collect
from scripted_upstream import END, chunk, finish, token
from scripted_upstream import request as ask_upstream
from scripted_upstream import serve as serve_upstream
from waiting import wait_until

from whence.v1 import generation_pb2 as g
from whence.v1.step_pb2 import Step
from whence_server.domain.content import ContentPolicy
from whence_server.domain.decoding import Strategy, TraceRequest
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    ContentNotReadError,
    ContentsFullError,
    GenerationExistsError,
)
from whence_server.domain.limits import Limits
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.content import held as held_module
from whence_server.generation.content.following import WholeEntries
from whence_server.generation.content.held import HeldContent, HeldContents
from whence_server.generation.content.holding import Holding
from whence_server.generation.readers import Reader
from whence_server.journal.entry_messages import MESSAGES
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability, GenerationIndex, ListFilter
from whence_server.journal.tail import LiveGeneration

BELOW_FULL = (ContentPolicy.TOKENS, ContentPolicy.NONE)
ID = "00000000-0000-4000-8000-000000000001"
OTHER = Reader(make_reader("2" * 16, "ResumeGeneration").caller, lambda: False, is_own=False)
"""A reader of the record."""


def wanted(
    policy: ContentPolicy | None, first: int = 1, num_tokens: int = 20, **more: Any
) -> GenerationRequest:
    plain = request(first, num_tokens)
    return GenerationRequest(
        plain.input,
        more.pop("digest", "d" * 64),
        decoding=plain.decoding,
        trace=TraceRequest(content=policy, prompt=True),
        labels={"team": "blue"},
        **more,
    )


async def serve(
    tmp_path: Path,
    engine: DyingEngine | None = None,
    *,
    durability: Durability = Durability.GROUP,
    **bounds: int,
) -> Service:
    journal = await Journal.open(tmp_path, durability=durability)
    contents = HeldContents(strict=durability is Durability.STRICT, **bounds)
    return Service(journal, engine or DyingEngine([]), Limits(), contents=contents)


async def read(
    run: Service, generation_id: str, after: int = 0, reader: Reader | None = None
) -> list[Entry]:
    reader = reader or make_reader()
    return await collect(run.generations.follow(generation_id, after, reader))


def parse(entries: list[Entry], kind: EntryKind = EntryKind.STEP) -> list[Any]:
    return [MESSAGES[kind].FromString(it.payload) for it in entries if it.kind is kind]


def spell(steps: list[Step]) -> tuple[list[int], str]:
    return [step.token_id for step in steps], "".join(step.text for step in steps)


def hold(
    contents: HeldContents | None = None, generation_id: str = "g", **settings: Any
) -> tuple[HeldContents, HeldContent, LiveGeneration]:
    contents = contents or HeldContents(**settings)
    index = GenerationIndex(generation_id, "0" * 32, "m", 1, "d", {}, "", 1)
    live = LiveGeneration(index, b"", 1)
    return contents, contents.hold(generation_id, live, 0.0), live


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("policy", BELOW_FULL)
async def test_the_stream_is_that_of_full_and_the_record_is_not(
    tmp_path: Path, policy: ContentPolicy, durability: Durability
) -> None:
    run = await serve(tmp_path, durability=durability)
    full = await read(run, await run.start(wanted(ContentPolicy.FULL)))
    generation_id = await run.start(wanted(policy))
    stream = await read(run, generation_id)

    assert [entry.kind for entry in stream] == [entry.kind for entry in full]
    assert [entry.offset for entry in stream] == list(range(1, len(full) + 1))
    ids, text = spell(parse(stream))
    assert (ids, text) == spell(parse(full))
    assert ids == [token_of([1], index) for index in range(20)]
    assert len(text) >= 20
    (started,), (finished,) = parse(stream, EntryKind.STARTED), parse(stream, EntryKind.FINISHED)
    assert started.content == policy.value
    assert (started.prompt, started.num_prompt_tokens) != ("", 0)
    assert finished.sequences[0].text == text

    record = await run.journal.read(generation_id)
    assert [entry.kind for entry in record] == [entry.kind for entry in stream]
    (kept,), (end,) = parse(record, EntryKind.STARTED), parse(record, EntryKind.FINISHED)
    keeps_ids = policy is ContentPolicy.TOKENS
    assert (kept.prompt, kept.num_prompt_tokens) == ("", 3)
    assert (kept.content, dict(kept.labels)) == (policy.value, {"team": "blue"})
    assert list(kept.prompt_token_ids) == ([1, 5, 6] if keeps_ids else [])
    assert spell(parse(record)) == (ids if keeps_ids else [0] * 20, "")
    assert all(step.HasField("token_id") is keeps_ids for step in parse(record))
    assert [step.logprob for step in parse(record)] == [step.logprob for step in parse(stream)]
    assert end.sequences[0].text == ""
    assert end.num_generated_tokens == 20
    (row, _), _ = await run.journal.list(ListFilter(), 10)
    assert (row.index.prompt_preview, row.finish.text_preview) == ("", "")  # type: ignore[union-attr]
    assert row.index.num_prompt_tokens == 3
    assert (await run.journal.verify()).intact
    await run.close()


@pytest.mark.parametrize("policy", BELOW_FULL)
async def test_a_stream_goes_on_whole_and_others_read_the_record(
    tmp_path: Path, policy: ContentPolicy
) -> None:
    run = await serve(tmp_path)
    generation_id = await run.start(wanted(policy))
    stream = await read(run, generation_id)
    again = await read(run, generation_id, 7)
    assert [entry.payload for entry in again] == [entry.payload for entry in stream[7:]]
    assert [entry.payload for entry in await read(run, generation_id, 2**40)] == [
        stream[-1].payload
    ]
    theirs = await read(run, generation_id, 7, OTHER)
    assert [entry.payload for entry in theirs] == [
        entry.payload for entry in (await run.journal.read(generation_id))[7:]
    ]
    contents = run.generations.recording.contents
    held = contents.find(generation_id)
    assert held is not None
    contents.forget(held)
    late = await collect(run.generations.recording.follow(generation_id, 7))
    assert [entry.payload for entry in late] == [entry.payload for entry in theirs]
    await run.close()


async def test_a_follower_goes_on_from_the_record_when_its_content_is_dropped(
    tmp_path: Path,
) -> None:
    run = await serve(tmp_path)
    generation_id = await run.start(wanted(ContentPolicy.NONE, num_tokens=100))
    contents = run.generations.recording.contents
    async with aclosing(run.generations.recording.follow(generation_id, 0)) as batches:
        first = await anext(batches)
        assert isinstance(first, WholeEntries)
        await wait_until(lambda: not run.generations.num_running)
        held = contents.find(generation_id)
        assert held is not None
        contents.forget(held)
        rest = [entry async for batch in batches for entry in batch]
    assert [entry.offset for entry in rest] == list(range(first[-1].offset + 1, 103))
    assert spell(parse(rest))[1] == ""
    await run.close()


@pytest.mark.parametrize("is_late", [False, True])
async def test_a_caller_that_is_not_told_gets_an_error_for_content_that_is_gone(
    tmp_path: Path, *, is_late: bool
) -> None:
    run = await serve(tmp_path)
    generation_id = await run.start(wanted(ContentPolicy.NONE, num_tokens=100))
    contents = run.generations.recording.contents
    async with aclosing(run.generations.follow(generation_id, 0, make_reader())) as batches:
        assert isinstance(await anext(batches), WholeEntries)
        await wait_until(lambda: not run.generations.num_running)
        held = contents.find(generation_id)
        assert held is not None
        contents.forget(held)
        with pytest.raises(ContentNotReadError):
            _ = [entries async for entries in batches]
    if is_late:
        with pytest.raises(ContentNotReadError):
            await read(run, generation_id)
    await run.close()


async def test_what_a_call_reads_is_kept_until_it_has_read_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_module, "KEPT_S", 0.01)
    contents, held, _ = hold()
    _, other, _ = hold(contents=contents, generation_id="h")
    fast, slow = object(), object()
    held.move(fast, 0)
    held.move(slow, 0)
    for kind in (EntryKind.STARTED, EntryKind.FINISHED):
        held.push(kind, bytes(9))
        other.push(kind, bytes(9))
    held.finish()
    other.finish()
    held.move(fast, 2)
    held.leave(fast)
    await wait_until(lambda: other.is_forgotten)
    assert not held.is_forgotten
    assert [entry.offset for entry in held.read_after(0, 1_000) or ()] == [1, 2]
    held.leave(slow)
    await wait_until(lambda: held.is_forgotten)


async def test_no_generation_begins_while_unread_content_fills_the_memory(tmp_path: Path) -> None:
    run = await serve(tmp_path, most_bytes=2_000)
    first = await run.start(wanted(ContentPolicy.NONE, num_tokens=100, disconnect_grace_s=60.0))
    await wait_until(lambda: not run.generations.num_running)
    with pytest.raises(ContentsFullError):
        await run.start(wanted(ContentPolicy.NONE))
    assert not run.generations.num_running
    # Whose record is whole takes no memory.
    await read(run, await run.start(wanted(ContentPolicy.FULL)))
    held = run.generations.recording.contents.find(first)
    assert held is not None
    run.generations.recording.contents.forget(held)
    await read(run, await run.start(wanted(ContentPolicy.NONE)))
    await run.close()


async def test_what_a_call_reads_gives_way_last() -> None:
    contents, held, _ = hold(max_bytes=100)
    _, other, _ = hold(contents=contents, generation_id="h")
    held.move(object(), 0)
    for each in (held, other):
        each.push(EntryKind.FINISHED, bytes(40))
        each.finish()
    _, third, _ = hold(contents=contents, generation_id="i")
    third.push(EntryKind.STARTED, bytes(40))
    assert (held.is_forgotten, other.is_forgotten) == (False, True)


async def test_memory_is_searched_for_room_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    contents, held, _ = hold(max_bytes=6_400)
    searches: list[int] = []
    make_room = contents._make_room

    def search() -> None:
        searches.append(contents._num_bytes)
        make_room()

    monkeypatch.setattr(contents, "_make_room", search)
    for _ in range(10_000):
        held.push(EntryKind.STEP, b"x")
    # Nothing can be dropped: each time, a 64th of the bound more has come.
    assert searches == list(range(6_401, 10_001, 101))
    contents.forget(held)
    _, other, _ = hold(contents=contents, generation_id="h")
    for _ in range(6_401):
        other.push(EntryKind.STEP, b"x")
    assert searches[-1] == 6_401, "memory that was free is searched from the bound on"


async def test_generations_go_on_whole_after_the_engines_death(tmp_path: Path) -> None:
    engine = DyingEngine(deaths=[5, 22])
    run = await serve(tmp_path, engine)
    ids = [await run.start(wanted(ContentPolicy.NONE, first)) for first in range(1, 4)]
    for first, entries in zip(
        range(1, 4), await asyncio.gather(*(read(run, it) for it in ids)), strict=True
    ):
        assert spell(parse(entries))[0] == [token_of([first], index) for index in range(20)]
    assert engine.num_restarts == 2
    await run.close()


async def test_a_generation_waits_for_its_slow_reader_and_others_do_not(tmp_path: Path) -> None:
    engine = DyingEngine([])
    run = await serve(tmp_path, engine, max_generation_bytes=4_000)
    slow = await run.start(wanted(ContentPolicy.NONE, 1, 900))
    async with aclosing(run.generations.follow(slow, 0, make_reader())) as batches:
        entries = list(await anext(batches))
        await wait_until(lambda: slow not in engine._jobs)
        held = run.generations.recording.contents.find(slow)
        assert held is not None
        assert 4_000 < held.num_bytes < 8_000
        # The engine is free for another caller's generation, whose reader is not slow.
        other = await read(run, await run.start(wanted(ContentPolicy.NONE, 2, 900)))
        assert spell(parse(other))[0] == [token_of([2], index) for index in range(900)]
        assert slow not in engine._jobs
        assert held.num_bytes < 8_000
        async for batch in batches:
            assert isinstance(batch, WholeEntries)
            entries += batch
    assert spell(parse(entries))[0] == [token_of([1], index) for index in range(900)]
    assert [entry.offset for entry in entries] == list(range(1, 903))
    record = await run.journal.read(slow)
    assert [entry.offset for entry in record] == list(range(1, 903))
    assert (await run.journal.verify()).intact
    await run.close()


async def test_a_reader_that_comes_back_gets_the_whole_of_what_waited(tmp_path: Path) -> None:
    engine = DyingEngine([])
    run = await serve(tmp_path, engine, max_generation_bytes=4_000)
    asked = wanted(ContentPolicy.NONE, 1, 300, disconnect_grace_s=60.0)
    generation_id = await run.start(asked)
    async with aclosing(run.generations.follow(generation_id, 0, make_reader())) as batches:
        entries = list(await anext(batches))
    await wait_until(lambda: generation_id not in engine._jobs)
    entries += await read(run, generation_id, entries[-1].offset)
    assert spell(parse(entries))[0] == [token_of([1], index) for index in range(300)]
    await run.close()


async def test_a_reader_of_the_record_keeps_no_generation_alive(tmp_path: Path) -> None:
    run = await serve(tmp_path, max_generation_bytes=4_000)
    generation_id = await run.start(wanted(ContentPolicy.NONE, 1, 900))
    observer = asyncio.create_task(read(run, generation_id, 0, OTHER))
    async with aclosing(run.generations.follow(generation_id, 0, make_reader())) as batches:
        await anext(batches)
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        entries = await observer
    (finished,) = parse(entries, EntryKind.FINISHED)
    assert finished.finish_reason == g.FINISH_REASON_CANCELLED
    await run.close()


async def test_a_generation_whose_reader_has_caught_up_is_not_stopped() -> None:
    contents, held, _ = hold(max_generation_bytes=100)
    sent: list[object] = []
    decoding = SimpleNamespace(strategy=Strategy.GREEDY)
    running: Any = SimpleNamespace(id="g", started=SimpleNamespace(decoding=decoding))
    engine: Any = SimpleNamespace(send=sent.append)
    readmission: Any = SimpleNamespace(has_sent=lambda _: True, forget=lambda _: None)
    holding = Holding({"g": running}, engine, readmission, contents, lambda _: None)
    reader = object()
    held.move(reader, 0)
    held.push(EntryKind.STARTED, bytes(200))
    # Other generations are recorded meanwhile.
    held.move(reader, 1)
    holding.stop_full()
    assert not sent
    held.push(EntryKind.STEP, bytes(200))
    holding.stop_full()
    assert len(sent) == 1


async def test_entries_that_readers_may_not_see_yet_are_not_unread() -> None:
    contents, held, live = hold(strict=True, max_generation_bytes=100)
    held.push(EntryKind.STARTED, bytes(200))
    held.push(EntryKind.STEP, bytes(200))
    assert contents.has_room("g")
    live.visible_offset = 1
    assert held.count_unread_bytes() == 200
    assert not contents.has_room("g")


async def test_memory_for_all_is_bounded_and_ended_generations_give_way(tmp_path: Path) -> None:
    run = await serve(tmp_path, max_bytes=30_000)
    contents = run.generations.recording.contents
    ids = [await run.start(wanted(ContentPolicy.NONE, first, 100)) for first in range(1, 6)]
    for first, entries in zip(
        range(1, 6), await asyncio.gather(*(read(run, it) for it in ids)), strict=True
    ):
        assert spell(parse(entries))[0] == [token_of([first], index) for index in range(100)]
    held = [contents.find(generation_id) for generation_id in ids]
    assert sum(it.num_bytes for it in held if it is not None) <= 30_000
    await run.close()


async def test_an_upstreams_generation_fails_where_it_would_have_to_wait(tmp_path: Path) -> None:
    parts = [*(chunk(token(" a", 5)) for _ in range(300)), finish(), END]
    run = await serve_upstream(tmp_path, [parts])
    contents = run.generations.recording.contents
    contents._max_generation_bytes = 4_000
    asked = replace(
        ask_upstream(), trace=TraceRequest(content=ContentPolicy.NONE), disconnect_grace_s=60.0
    )
    generation_id = await run.start(asked)
    await wait_until(lambda: not run.generations.num_running)
    recorded = await run.read(generation_id)
    assert recorded.finished.failure.reason == "CONTENT_NOT_READ"
    assert recorded.steps[0].text == " a"
    await run.close()


async def test_the_digest_of_a_request_cannot_be_guessed_and_still_joins(tmp_path: Path) -> None:
    run = await serve(tmp_path)
    first = await run.start(wanted(ContentPolicy.NONE, generation_id=ID))
    assert await run.start(wanted(ContentPolicy.NONE, generation_id=ID)) == first
    with pytest.raises(GenerationExistsError):
        await run.start(wanted(ContentPolicy.NONE, generation_id=ID, digest="e" * 64))
    second = await run.start(wanted(ContentPolicy.NONE))
    for generation_id in (first, second):
        await run.finished(generation_id)
    digests = {(await run.journal.get(it)).request_digest for it in (first, second)}
    assert len(digests) == 2
    assert "d" * 64 not in digests
    assert all(len(digest) == 64 for digest in digests)
    await run.close()


async def test_after_a_restart_an_equal_request_is_not_known(tmp_path: Path) -> None:
    run = await serve(tmp_path)
    await run.finished(await run.start(wanted(ContentPolicy.TOKENS, generation_id=ID)))
    await run.close()
    run = await serve(tmp_path)
    with pytest.raises(GenerationExistsError):
        await run.start(wanted(ContentPolicy.TOKENS, generation_id=ID))
    await run.close()


def test_policies_have_the_numbers_of_the_contract() -> None:
    for policy in ContentPolicy:
        assert g.ContentPolicy.Name(policy.value) == f"CONTENT_POLICY_{policy.name}"
