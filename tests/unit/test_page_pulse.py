"""The stream of running generations: short, and read once for all pages of a caller."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from aiohttp import ClientSession
from waiting import wait_until

from whence.v1 import generation_pb2, step_pb2, trace_pb2
from whence_server.access.audit import AuditTrail
from whence_server.access.gate import Gate
from whence_server.domain.api_routes import PULSE
from whence_server.domain.audit import AuditEntry, AuditLevel
from whence_server.http.page import pulse
from whence_server.http.page.pulse import _Feed, list_pulse_routes, note_changes
from whence_server.http.server import HttpServer
from whence_server.http.streams import COMMENT
from whence_server.rpc import trace_servicer
from whence_server.rpc.calls import CallLog, Method

ONE = "6f1c2f0e-1d2b-4c57-9a41-0c3f5f7f9d10"


def make_message(**event: Any) -> trace_pb2.WatchGenerationsResponse:
    return trace_pb2.WatchGenerationsResponse(
        generation_id=ONE, position="p", event=generation_pb2.GenerationEvent(**event)
    )


def make_steps(*texts: str, first: int = 0) -> trace_pb2.WatchGenerationsResponse:
    steps = [
        step_pb2.Step(index=first + i, text=text, logprob=-0.5, rank=i)
        for i, text in enumerate(texts)
    ]
    return make_message(steps=generation_pb2.StepBatch(steps=steps))


class Watch:
    """A watch whose messages a test gives; it notes when it is closed."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[trace_pb2.WatchGenerationsResponse | None] = asyncio.Queue()
        self.is_closed = False

    async def read(self) -> AsyncGenerator[bytes, None]:
        try:
            while (message := await self.queue.get()) is not None:
                yield message.SerializeToString()
        finally:
            self.is_closed = True


def read_event(event: bytes) -> list[dict[str, Any]]:
    line = event.removeprefix(b"data: ").strip()
    found: list[dict[str, Any]] = json.loads(line)["generations"]
    return found


def test_changes_of_a_generation_are_one_entry() -> None:
    changes: dict[str, dict[str, Any]] = {}
    started = generation_pb2.GenerationStarted(generation_id=ONE, model="m", prompt="p" * 500)
    note_changes(changes, make_message(started=started))
    note_changes(changes, make_steps("a", "b"))
    unknown = step_pb2.Step(index=2, text="c")
    note_changes(changes, make_message(steps=generation_pb2.StepBatch(steps=[unknown])))
    reason = generation_pb2.FinishReason.FINISH_REASON_LENGTH
    finished = generation_pb2.GenerationFinished(finish_reason=reason)
    note_changes(changes, make_message(finished=finished))
    note_changes(changes, trace_pb2.WatchGenerationsResponse(position="q"))
    (change,) = changes.values()
    assert change["started"]["promptPreview"] == "p" * 200
    assert change["steps"] == [[0, 0, "a", -0.5], [0, 1, "b", -0.5], [0, 2, "c", None]]
    assert change["finished"] == "FINISH_REASON_LENGTH"
    assert "rank" not in json.dumps(change)


async def test_all_readers_share_one_watch_that_ends_with_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pulse, "_INTERVAL_S", 0.01)
    watch, ended = Watch(), []
    feed = _Feed(watch.read(), ended.append)
    readers = [feed.join(), feed.join()]
    watch.queue.put_nowait(make_steps("a"))
    events = [await asyncio.wait_for(reader.get(), 30) for reader in readers]
    assert events[0] == events[1]
    assert read_event(events[0])[0]["steps"] == [[0, 0, "a", -0.5]]
    feed.leave(readers[0])
    watch.queue.put_nowait(make_steps("b", first=1))
    event = await asyncio.wait_for(readers[1].get(), 30)
    assert read_event(event)[0]["steps"] == [[0, 1, "b", -0.5]]
    assert readers[0].empty()
    assert not ended
    feed.leave(readers[1])
    assert ended == [feed]
    await wait_until(lambda: watch.is_closed)


async def test_the_end_of_the_watch_ends_all_readers() -> None:
    watch, ended = Watch(), []
    feed = _Feed(watch.read(), ended.append)
    readers = [feed.join(), feed.join()]
    watch.queue.put_nowait(None)
    assert [await asyncio.wait_for(reader.get(), 30) for reader in readers] == [b"", b""]
    assert ended == [feed]


async def test_a_reader_that_is_too_slow_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "_INTERVAL_S", 0.001)
    monkeypatch.setattr(pulse, "_MOST_WAITING", 2)
    watch = Watch()
    feed = _Feed(watch.read(), lambda _: None)
    slow, fast = feed.join(), feed.join()
    for number in range(5):
        watch.queue.put_nowait(make_steps("a", first=number))
        assert await asyncio.wait_for(fast.get(), 30)
    assert slow.qsize() == 3
    assert [slow.get_nowait() for _ in range(3)][-1] == b""
    feed.leave(slow)
    feed.leave(fast)


async def test_a_failure_ends_the_stream_and_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> bytes:
        raise ValueError("cannot be written")

    monkeypatch.setattr(pulse, "_INTERVAL_S", 0.001)
    monkeypatch.setattr(pulse, "make_event", fail)
    watch, ended = Watch(), []
    reader = _Feed(watch.read(), ended.append).join()
    watch.queue.put_nowait(make_steps("a"))
    assert await asyncio.wait_for(reader.get(), 30) == b""
    assert len(ended) == 1
    await wait_until(lambda: watch.is_closed)
    await wait_until(lambda: "the stream of running generations failed" in caplog.text)


def test_a_reason_of_a_later_version_has_its_number() -> None:
    changes: dict[str, dict[str, Any]] = {}
    finished = generation_pb2.GenerationFinished()
    key = finished.DESCRIPTOR.fields_by_name["finish_reason"].number << 3
    finished.MergeFromString(bytes([key]) + b"\xe7\x07")
    note_changes(changes, make_message(finished=finished))
    assert changes[ONE]["finished"] == "999"


async def test_a_reader_is_noted_before_it_is_shown_anything() -> None:
    noted: list[AuditEntry] = []
    watch = Watch()
    method = Method(
        "WatchGenerations", trace_pb2.WatchGenerationsRequest, stream=lambda *_: watch.read()
    )
    gate = Gate(trail=AuditTrail(AuditLevel.ALL, noted.append))
    ((_, answer),) = list_pulse_routes(
        {trace_servicer.SERVICE: [method]}, CallLog(lambda _: None), gate
    ).items()
    server = HttpServer({("GET", PULSE): answer}, "127.0.0.1", 0, answer, max_connections=4)
    await server.start()
    try:
        async with ClientSession() as session, session.get(server.url + PULSE) as shown:
            assert await asyncio.wait_for(shown.content.readany(), 30) == COMMENT
            assert [entry.deed.method for entry in noted] == [f"GET {PULSE}"]
        await wait_until(lambda: watch.is_closed)
    finally:
        await server.close()
    assert len(noted) == 1
