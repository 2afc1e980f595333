"""Streams of a real server that are quiet: each tells its progress, and loses nothing by it."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from rpc_errors import failure_of
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import trace_pb2
from whence.v1.generation_pb2_grpc import GenerationServiceStub
from whence.v1.trace_pb2_grpc import TraceServiceStub

INTERVAL_S = 0.2


@pytest.fixture(scope="module")
def server(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    with ServerProcess(
        tiny_model("gpt2-long"),
        tmp_path_factory.mktemp("quiet"),
        "--progress-interval",
        str(INTERVAL_S),
        "--max-batch-size",
        "1",
    ) as process:
        yield process


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.target) as opened:
        yield opened


@contextmanager
def stopped(server: ServerProcess) -> Iterator[None]:
    """Stop the engine, so that nothing happens."""
    engine = psutil.Process(server.engine_pid)
    engine.suspend()
    try:
        yield
    finally:
        engine.resume()


def endless(**fields: object) -> g.GenerateRequest:
    return g.GenerateRequest(
        prompt="The quick brown fox",
        decoding=g.Decoding(greedy=g.Greedy(), max_new_tokens=8_000, ignore_eos=True),
        disconnect_grace=Duration(seconds=60),
        **fields,
    )


def cancel(channel: grpc.Channel, *generation_ids: str) -> None:
    for generation_id in generation_ids:
        request = g.CancelGenerationRequest(generation_id=generation_id)
        GenerationServiceStub(channel).CancelGeneration(request)


def read_until(call, kind: str) -> list[g.GenerationEvent]:
    """Read events up to the first one of a kind."""
    events = []
    for response in call:
        events.append(response.event)
        if response.event.WhichOneof("event") == kind:
            return events
    raise AssertionError(f"the stream ended without {kind}")


def read_until_quiet(call) -> list[g.GenerationEvent]:
    """Read events up to a second message of progress without an event since the first.

    The first may come before steps that the engine sent before it was stopped: a server whose
    processor was busy with something else finds the end of the interval and the steps at once.
    """
    events = read_until(call, "progress")
    while len(further := read_until(call, "progress")) > 1:
        events += further
    return events + further


def test_quiet_generation_tells_its_progress(server: ServerProcess, channel: grpc.Channel) -> None:
    call = GenerationServiceStub(channel).Generate(endless())
    events = read_until(call, "steps")
    with stopped(server):
        first = read_until_quiet(call)[-1]
        begin = time.monotonic()
        (second,) = read_until(call, "progress")
        assert time.monotonic() - begin >= INTERVAL_S * 0.9
    assert first == second
    assert first.first_offset == first.last_offset
    progress = first.progress
    assert progress.phase == g.GENERATION_PHASE_GENERATING
    assert progress.num_prompt_tokens == progress.num_prompt_tokens_read > 0
    assert progress.num_generated_tokens == first.last_offset - 1
    cancel(channel, events[0].started.generation_id)


def test_reader_that_resumes_from_any_offset_loses_and_repeats_nothing(
    server: ServerProcess, channel: grpc.Channel
) -> None:
    """Hand back the offset of every message, as released clients do, which skip what is unknown."""
    stub = GenerationServiceStub(channel)
    generation_id = str(uuid.uuid4())
    call = stub.Generate(endless(generation_id=generation_id))
    indices: list[int] = []
    for _ in range(4):
        events = read_until(call, "steps")
        with stopped(server):
            events += read_until_quiet(call)
            call.cancel()
            resume = g.ResumeGenerationRequest(
                generation_id=generation_id, after_offset=events[-1].last_offset
            )
            call = stub.ResumeGeneration(resume)
            # The new call is quiet from its start, and repeats the offset that it was given.
            again = next(call).event
            assert (again.last_offset, again.progress) == (
                events[-1].last_offset,
                events[-1].progress,
            )
        indices += [step.index for event in events for step in event.steps.steps]
    cancel(channel, generation_id)
    events = read_until(call, "finished")
    indices += [step.index for event in events for step in event.steps.steps]
    assert indices == list(range(events[-1].finished.num_generated_tokens))


def test_waiting_generation_tells_its_place_and_the_restart_of_the_engine(
    server: ServerProcess, channel: grpc.Channel
) -> None:
    stub = GenerationServiceStub(channel)
    calls, generation_ids = [], []
    # One after the other: calls that are made at once are admitted in any order. The first has left
    # the queue once it has a step.
    for kind in ("steps", "started", "started"):
        calls.append(stub.Generate(endless()))
        events = read_until(calls[-1], kind)
        (started,) = (event.started for event in events if event.HasField("started"))
        generation_ids.append(started.generation_id)
    waiting = calls[2]
    progress = read_until(waiting, "progress")[-1].progress
    assert progress.phase == g.GENERATION_PHASE_QUEUED
    assert (progress.num_generations_ahead, progress.num_prompt_tokens_read) == (1, 0)
    psutil.Process(server.engine_pid).kill()
    while progress.phase != g.GENERATION_PHASE_ENGINE_RESTARTING:
        progress = read_until(waiting, "progress")[-1].progress
    while progress.phase != g.GENERATION_PHASE_QUEUED:
        progress = read_until(waiting, "progress")[-1].progress
    cancel(channel, *generation_ids)
    *_, last = waiting
    assert last.event.finished.finish_reason == g.FINISH_REASON_CANCELLED


def test_generation_tells_that_its_long_text_is_being_prepared(
    server: ServerProcess, channel: grpc.Channel
) -> None:
    workers = [
        child
        for child in psutil.Process(server.pid).children()
        if "text_worker" in " ".join(child.cmdline())
    ]
    assert workers
    for worker in workers:
        worker.suspend()
    try:
        request = endless()
        request.prompt = "The quick brown fox. " * 250
        call = GenerationServiceStub(channel).Generate(request)
        first = next(call).event
    finally:
        for worker in workers:
            worker.resume()
    assert (first.first_offset, first.last_offset) == (0, 0)
    assert first.progress == g.GenerationProgress(phase=g.GENERATION_PHASE_PREPARING)
    started = read_until(call, "started")[-1]
    assert started.first_offset == 1
    cancel(channel, started.started.generation_id)


def test_quiet_watches_repeat_their_position(server: ServerProcess, channel: grpc.Channel) -> None:
    stub = TraceServiceStub(channel)
    watch = stub.WatchGenerations(
        trace_pb2.WatchGenerationsRequest(
            filter=trace_pb2.GenerationFilter(labels={"wanted": "yes"})
        )
    )
    first = next(watch)
    assert first.position
    assert (first.generation_id, first.HasField("event")) == ("", False)
    generations = GenerationServiceStub(channel)
    for labels in ({"wanted": "no"}, {"wanted": "yes"}):
        short = g.GenerateRequest(
            prompt="The", decoding=g.Decoding(max_new_tokens=3), labels=labels
        )
        list(generations.Generate(short))
    updates = []
    while not (updates and updates[-1].event.HasField("finished")):
        updates.append(next(watch))
    quiet = next(watch)
    assert not quiet.HasField("event")
    watch.cancel()
    for position in (first.position, quiet.position):
        resumed = stub.WatchGenerations(
            trace_pb2.WatchGenerationsRequest(
                after_position=position,
                filter=trace_pb2.GenerationFilter(labels={"wanted": "yes"}),
            )
        )
        assert next(resumed).HasField("event") == (position == first.position)
        resumed.cancel()


def test_watch_of_a_server_that_shuts_down_ends_as_draining(
    server: ServerProcess, channel: grpc.Channel
) -> None:
    """The last test of the file: it ends the server."""
    watch = TraceServiceStub(channel).WatchGenerations(trace_pb2.WatchGenerationsRequest())
    next(watch)
    server.process.terminate()
    with pytest.raises(grpc.RpcError) as caught:
        list(watch)
    failure = failure_of(caught.value)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status_pb2.Status.FromString(details).details)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 1.0
    assert server.wait() == 0
