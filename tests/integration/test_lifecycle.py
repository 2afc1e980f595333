"""Health, reflection, draining, limits, and generations that lose their readers."""

import re
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from rpc_errors import failure_of
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import (
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    trace_pb2,
    trace_pb2_grpc,
)
from whence.v1.occurrence_pb2 import Occurrence

SERVING = health_pb2.HealthCheckResponse.SERVING
DEADLINE_EXCEEDED: int = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
FROM_THE_BEGINNING = "cDE6MA=="  # "p1:0"


def endless(**fields: object) -> g.GenerateRequest:
    return g.GenerateRequest(
        prompt="The quick brown fox",
        decoding=g.Decoding(sample=g.Sample(seed=1), max_new_tokens=8_000, ignore_eos=True),
        **fields,
    )


def generate(channel: grpc.Channel, request: g.GenerateRequest):
    return generation_pb2_grpc.GenerationServiceStub(channel).Generate(request)


def first_step(call) -> str:
    generation_id = ""
    for response in call:
        if response.event.HasField("started"):
            generation_id = response.event.started.generation_id
        if response.event.HasField("steps"):
            return generation_id
    raise AssertionError("the stream ended before its first step")


def wait_finished(channel: grpc.Channel, generation_id: str) -> g.GenerationFinished:
    """Awaits its end without being one of its readers: by watching from the journal's start."""
    watch = trace_pb2_grpc.TraceServiceStub(channel).WatchGenerations(
        trace_pb2.WatchGenerationsRequest(lifecycle_only=True, after_position=FROM_THE_BEGINNING)
    )
    try:
        for update in watch:
            if update.generation_id == generation_id and update.event.HasField("finished"):
                return update.event.finished
    finally:
        watch.cancel()
    raise AssertionError("the watch ended")


def read_occurrences(channel: grpc.Channel, generation_id: str) -> list[Occurrence]:
    request = trace_pb2.GetGenerationRequest(generation_id=generation_id)
    return list(trace_pb2_grpc.TraceServiceStub(channel).GetGeneration(request).occurrences)


def await_occurrence(channel: grpc.Channel, generation_id: str) -> None:
    """Wait until a generation has an occurrence, which no stream has."""
    give_up = time.monotonic() + 60
    while not read_occurrences(channel, generation_id):
        assert time.monotonic() < give_up, "the server has recorded no occurrence"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def long_server(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory):
    with ServerProcess(tiny_model("gpt2-long"), tmp_path_factory.mktemp("long")) as process:
        yield process


@pytest.fixture
def long_channel(long_server: ServerProcess):
    with grpc.insecure_channel(long_server.target) as channel:
        yield channel


def test_the_front_has_no_torch(server: ServerProcess) -> None:
    front = Path(f"/proc/{server.pid}/maps").read_text(encoding="utf-8")
    engine = Path(f"/proc/{server.engine_pid}/maps").read_text(encoding="utf-8")
    assert "libtorch" in engine
    assert "libtorch" not in front
    assert "site-packages/numba" not in front


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_a_client_from_reflection_alone_streams_a_generation(
    channel: grpc.Channel, version: str
) -> None:
    ask = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    pool = descriptor_pool.DescriptorPool()
    known: set[str] = set()

    def load(**query: str) -> None:
        (answer,) = ask(iter([reflection_pb2.ServerReflectionRequest(**query)]))
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(raw)
            for raw in answer.file_descriptor_response.file_descriptor_proto
        ]
        for file in files:
            add(file)

    def add(file: descriptor_pb2.FileDescriptorProto) -> None:
        if file.name in known:
            return
        known.add(file.name)
        for dependency in file.dependency:
            if dependency not in known:
                load(file_by_filename=dependency)
        pool.Add(file)

    (listed,) = ask(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
    names = {s.name for s in listed.list_services_response.service}
    assert {
        "whence.v1.GenerationService",
        "whence.v1.TraceService",
        "whence.v1.ModelService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    } <= names
    for name in names:  # tools load each of them
        load(file_containing_symbol=name)
        pool.FindServiceByName(name)
    method = pool.FindServiceByName("whence.v1.GenerationService").methods_by_name["Generate"]
    request_class = message_factory.GetMessageClass(method.input_type)
    response_class = message_factory.GetMessageClass(method.output_type)
    request = request_class(prompt="The quick", decoding={"max_new_tokens": 8})
    call = channel.unary_stream(
        "/whence.v1.GenerationService/Generate",
        request_serializer=request_class.SerializeToString,
        response_deserializer=response_class.FromString,
    )
    *_, last = call(request)
    assert last.event.finished.num_generated_tokens == 8


@pytest.mark.parametrize("num_bytes", [7_500, 9_000, 15_000, 60_000, 66_000, 100_000])
def test_large_metadata_is_taken_or_refused_and_never_at_random(
    channel: grpc.Channel, num_bytes: int
) -> None:
    """Headers between 8 and 16 KiB, which gRPC refuses at random by default, and others."""
    stub = model_pb2_grpc.ModelServiceStub(channel)
    outcomes = set()
    for number in range(25):
        baggage = f"tenant={number}".ljust(num_bytes, "x")  # not in HTTP/2's table of headers
        try:
            stub.ListModels(model_pb2.ListModelsRequest(), metadata=(("baggage", baggage),))
            outcomes.add("taken")
        except grpc.RpcError as error:
            told = "metadata size exceeds" in error.details() and "65536" in error.details()
            outcomes.add((error.code(), told))
    refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert outcomes == {"taken" if num_bytes < 64 << 10 else refused}


def test_health_serves_and_watches(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "whence.v1.GenerationService", "whence.v1.TraceService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == SERVING
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == SERVING
    watch.cancel()


def test_a_generation_without_a_reader_is_cancelled(long_channel: grpc.Channel) -> None:
    call = generate(long_channel, endless())
    generation_id = first_step(call)
    call.cancel()
    finished = wait_finished(long_channel, generation_id)
    assert finished.finish_reason == g.FINISH_REASON_CANCELLED
    assert 0 < finished.num_generated_tokens < 8_000
    left, cancelled = read_occurrences(long_channel, generation_id)
    assert left.reader_left.status_code == grpc.StatusCode.CANCELLED.value[0]
    assert cancelled.cancelled.HasField("without_reader")
    assert cancelled.num_steps == finished.num_generated_tokens


def test_a_reader_may_come_back_within_the_grace(long_channel: grpc.Channel) -> None:
    request = endless()
    request.decoding.max_new_tokens = 1_500
    request.disconnect_grace.FromSeconds(60)
    call = generate(long_channel, request)
    generation_id, offset, ids = "", 0, []
    for response in call:
        event = response.event
        offset = event.last_offset
        ids += [s.token_id for s in event.steps.steps]
        if event.HasField("started"):
            generation_id = event.started.generation_id
        if len(ids) > 20:
            break
    call.cancel()
    resumed_after = offset
    resumed = generation_pb2_grpc.GenerationServiceStub(long_channel).ResumeGeneration(
        g.ResumeGenerationRequest(generation_id=generation_id, after_offset=offset)
    )
    for response in resumed:
        event = response.event
        if event.HasField("progress"):
            continue  # on a machine that is slow now
        assert event.first_offset == offset + 1
        offset = event.last_offset
        ids += [s.token_id for s in event.steps.steps]
        if event.HasField("finished"):
            assert event.finished.finish_reason == g.FINISH_REASON_LENGTH
            assert list(event.finished.sequences[0].token_ids) == ids
    assert len(ids) == 1_500
    # The server may see the new call before the end of the old one.
    occurrences = {
        occurrence.WhichOneof("occurrence"): occurrence
        for occurrence in read_occurrences(long_channel, generation_id)
    }
    assert occurrences.keys() == {"reader_left", "reader_joined"}
    left = occurrences["reader_left"].reader_left
    assert left.caller.method == "whence.v1.GenerationService/Generate"
    joined = occurrences["reader_joined"].reader_joined
    assert joined.after_offset == resumed_after
    assert joined.caller.method == "whence.v1.GenerationService/ResumeGeneration"
    assert (joined.caller.address, joined.caller.parent_span_id) == ("unix", "")
    assert not joined.caller.HasField("port")


def test_a_retry_with_its_id_and_without_a_grace_gets_every_token(
    long_channel: grpc.Channel,
) -> None:
    """A connection that breaks does not cancel a generation that its caller can name."""
    request = endless(generation_id=str(uuid.uuid4()))
    request.decoding.max_new_tokens = 300
    call = generate(long_channel, request)
    first_step(call)
    call.cancel()
    *_, last = generate(long_channel, request)
    assert last.event.finished.finish_reason == g.FINISH_REASON_LENGTH
    assert last.event.finished.num_generated_tokens == 300


def test_a_generation_is_cancelled_after_the_disconnect_grace(long_channel: grpc.Channel) -> None:
    request = endless()
    request.disconnect_grace.FromMilliseconds(300)
    call = generate(long_channel, request)
    generation_id = first_step(call)
    call.cancel()
    assert wait_finished(long_channel, generation_id).finish_reason == g.FINISH_REASON_CANCELLED


def read_until_deadline(channel: grpc.Channel) -> str:
    """Start a generation in a call whose deadline ends it; return the id, once that is recorded.

    On a machine that stands still the deadline may pass before the first step, and a request may be
    under way for so long that the client's clock ends the call long before the server's would. The
    call is then made again, with a later deadline.
    """
    stub, request = generation_pb2_grpc.GenerationServiceStub(channel), endless()
    request.disconnect_grace.FromSeconds(60)
    for timeout_s in (1, 2, 4, 8):
        call = stub.Generate(request, timeout=timeout_s)
        generation_id, has_steps = "", False
        with suppress(grpc.RpcError):
            for response in call:
                generation_id = response.event.started.generation_id or generation_id
                has_steps = has_steps or response.event.HasField("steps")
        assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if not generation_id:
            continue
        await_occurrence(channel, generation_id)
        left, *_ = read_occurrences(channel, generation_id)
        if has_steps and left.reader_left.status_code == DEADLINE_EXCEEDED:
            return generation_id
        stub.CancelGeneration(g.CancelGenerationRequest(generation_id=generation_id))
    raise AssertionError("no deadline of a call is recorded as one")


def test_the_calls_deadline_ends_only_the_call(long_channel: grpc.Channel) -> None:
    stub = generation_pb2_grpc.GenerationServiceStub(long_channel)
    generation_id = read_until_deadline(long_channel)
    traceparent = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"),)
    stub.CancelGeneration(
        g.CancelGenerationRequest(generation_id=generation_id), metadata=traceparent
    )
    stub.CancelGeneration(g.CancelGenerationRequest(generation_id=generation_id))
    assert wait_finished(long_channel, generation_id).finish_reason == g.FINISH_REASON_CANCELLED
    left, cancelled = read_occurrences(long_channel, generation_id)
    assert left.reader_left.status_code == DEADLINE_EXCEEDED
    caller = cancelled.cancelled.caller
    assert caller.method == "whence.v1.GenerationService/CancelGeneration"
    assert caller.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert caller.parent_span_id == "00f067aa0ba902b7"


def test_max_duration_ends_the_generation(long_channel: grpc.Channel) -> None:
    request, duration_ms, num_tokens = endless(), 500, 0
    while num_tokens == 0:  # on a machine that stands still, before the first token
        request.max_duration.FromMilliseconds(duration_ms)
        first, *_, last = generate(long_channel, request)
        assert last.event.finished.finish_reason == g.FINISH_REASON_TIMEOUT
        (passed,) = read_occurrences(long_channel, first.event.started.generation_id)
        assert passed.max_duration_passed.max_duration.ToMilliseconds() == duration_ms
        num_tokens, duration_ms = last.event.finished.num_generated_tokens, 2 * duration_ms


def test_a_full_queue_refuses_before_any_work(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    flags = ("--max-queue", "2", "--max-batch-size", "1")
    with ServerProcess(tiny_model("gpt2-long"), tmp_path, *flags) as server:
        with grpc.insecure_channel(server.target) as channel:
            calls = [generate(channel, endless())]
            first_step(calls[0])
            calls += [generate(channel, endless()) for _ in range(2)]
            for call in calls[1:]:
                assert next(call).event.HasField("started")
            with pytest.raises(grpc.RpcError) as caught:
                list(generate(channel, endless()))
            failure = failure_of(caught.value)
            assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert failure.reason == "QUEUE_FULL"
            for call in calls:
                call.cancel()


def test_draining_lets_running_generations_finish(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with ServerProcess(tiny_model("gpt2-long"), tmp_path) as server:
        with grpc.insecure_channel(server.target) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == SERVING
            request = endless()
            request.decoding.max_new_tokens = 1_500
            call = generate(channel, request)
            first_step(call)
            server.process.terminate()
            assert next(watch).status == NOT_SERVING
            with pytest.raises(grpc.RpcError) as caught:
                list(generate(channel, endless()))
            failure = failure_of(caught.value)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            *_, last = call
            assert last.event.finished.finish_reason == g.FINISH_REASON_LENGTH
        assert server.wait() == 0


def test_draining_interrupts_after_the_grace(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with ServerProcess(tiny_model("gpt2-long"), tmp_path, "--drain-grace", "0.2") as server:
        with grpc.insecure_channel(server.target) as channel:
            call = generate(channel, endless())
            first_step(call)
            server.process.terminate()
            *_, last = call
            assert last.event.finished.finish_reason == g.FINISH_REASON_INTERRUPTED
        assert server.wait() == 0


def test_addresses_beyond_loopback_need_the_flag(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    refused = ServerProcess(tiny_model("gpt2"), tmp_path, "--listen", "0.0.0.0:0")
    assert refused.wait() == 2
    assert "--insecure-listen-anywhere" in "".join(refused.log)
    with ServerProcess(
        tiny_model("gpt2"), tmp_path, "--listen", "0.0.0.0:0", "--insecure-listen-anywhere"
    ) as allowed:
        assert re.fullmatch(r"0\.0\.0\.0:[0-9]+", allowed.target)


def test_a_watch_goes_on_from_any_event(server: ServerProcess, channel: grpc.Channel) -> None:
    """Also where several events had come in one batch: none is skipped."""
    *_, last = generate(channel, g.GenerateRequest(prompt="x", labels={"watch": "me"}))
    assert last.event.HasField("finished")
    stub = trace_pb2_grpc.TraceServiceStub(channel)
    position, offset, kinds = FROM_THE_BEGINNING, 0, []
    while "finished" not in kinds:
        watch = stub.WatchGenerations(
            trace_pb2.WatchGenerationsRequest(
                after_position=position,
                filter=trace_pb2.GenerationFilter(labels={"watch": "me"}),
            )
        )
        update = next(watch)
        watch.cancel()
        assert update.event.first_offset == offset + 1
        offset, position = update.event.last_offset, update.position
        kinds.append(update.event.WhichOneof("event"))
    assert kinds[0] == "started"


def test_a_call_beyond_a_connections_streams_waits_for_one_to_end(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    def generation_ids(channel: grpc.Channel) -> set[str]:
        request = trace_pb2.ListGenerationsRequest()
        listed = trace_pb2_grpc.TraceServiceStub(channel).ListGenerations(request)
        return {generation.generation_id for generation in listed.generations}

    ids = [str(uuid.UUID(int=number)) for number in range(3)]
    with ServerProcess(
        tiny_model("gpt2-long"), tmp_path, "--max-concurrent-streams", "1"
    ) as server:
        with grpc.insecure_channel(server.target) as channel:
            first = generate(channel, endless(generation_id=ids[0]))
            first_step(first)
            second = generate(channel, endless(generation_id=ids[1]))
            with grpc.insecure_channel(
                server.target, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as other:
                # It is called last, and its connection has room: by its first step, the second
                # would have begun if it could.
                third = generate(other, endless(generation_id=ids[2]))
                first_step(third)
                third.cancel()
                first_step(first)
                assert generation_ids(other) == {ids[0], ids[2]}
            first.cancel()
            assert first_step(second) == ids[1]


@pytest.mark.slow
def test_keepalive_survives_a_long_silence(long_server: ServerProcess) -> None:
    """gRPC's default ends the connection after the third ping without data."""
    options = [
        ("grpc.keepalive_time_ms", 6_000),
        ("grpc.keepalive_timeout_ms", 60_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    with grpc.insecure_channel(long_server.target, options=options) as channel:
        call = generate(channel, endless())
        first_step(call)
        engine = psutil.Process(long_server.engine_pid)
        engine.suspend()
        try:
            # Silence is what is tested, for four pings: there is nothing to wait for.
            time.sleep(26)
        finally:
            engine.resume()
        for _ in range(100):
            next(call)
        call.cancel()


def test_a_stalled_reader_neither_fills_memory_nor_delays_the_others(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Its backlog is on disk, not in memory, and the others stream on."""
    flags = ("--max-batch-size", "128", "--max-cache-tokens", "1000000")
    with ServerProcess(tiny_model("gpt2-long"), tmp_path, *flags) as server:
        front = psutil.Process(server.pid)
        request = endless()
        request.decoding.max_new_tokens = 700
        request.decoding.num_return_sequences = 32
        request.trace.num_candidates = 128
        stalled_channel = grpc.insecure_channel(
            server.target, options=[("grpc.http2.bdp_probe", 0)]
        )
        stalled = generate(stalled_channel, request)
        generation_id = first_step(stalled)
        others = g.GenerateRequest(
            prompt="x",
            decoding=g.Decoding(sample=g.Sample(seed=2), max_new_tokens=60, ignore_eos=True),
        )
        finished: list[int] = []

        def read() -> None:
            with grpc.insecure_channel(server.target) as channel:
                *_, last = generate(channel, others)
                finished.append(last.event.finished.num_generated_tokens)

        readers = [threading.Thread(target=read) for _ in range(99)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        assert finished == [60] * 99
        before = front.memory_info().rss
        # The stalled one's generation goes on meanwhile, and ends; nobody reads it.
        with grpc.insecure_channel(server.target) as channel:
            wait_finished(channel, generation_id)
        grown = front.memory_info().rss - before
        backlog = sum(path.stat().st_size for path in tmp_path.glob("journal.db*"))
        assert backlog > 24 << 20, f"{backlog / 2**20:.0f} MiB: too little to show anything"
        assert grown < 16 << 20, f"{grown / 2**20:.0f} MiB"
        *_, last = stalled
        assert last.event.finished.num_generated_tokens == 32 * 700
        stalled_channel.close()
