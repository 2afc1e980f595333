"""Health, reflection, and generations that lose their readers or run out of time."""

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
from long_generations import (
    FROM_THE_BEGINNING,
    await_occurrence,
    endless,
    first_step,
    generate,
    read_occurrences,
    wait_finished,
)
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import (
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    trace_pb2,
    trace_pb2_grpc,
)

SERVING = health_pb2.HealthCheckResponse.SERVING
DEADLINE_EXCEEDED: int = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


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
