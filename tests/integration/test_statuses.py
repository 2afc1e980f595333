"""Statuses that callers get: every method under empty, extreme and broken requests, and bursts."""

import asyncio
import base64
import importlib
import pkgutil
import urllib.parse
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from rpc_errors import failure_of
from server_process import ServerProcess

import whence.v1
from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, trace_pb2, trace_pb2_grpc

STANDARD = (health_pb2, reflection_pb2)
# What a caller may be told of a request that is his own fault, or that finds nothing.
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    # By the caller's own deadline: watching never ends.
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
EXTREMES: dict[int, list[object]] = {
    FieldDescriptor.TYPE_STRING: ["", "x" * 300_000, "\0", "ü%" * 1_000],
    FieldDescriptor.TYPE_BYTES: [b"\xff" * 300_000],
    FieldDescriptor.TYPE_INT32: [-(2**31), 2**31 - 1],
    FieldDescriptor.TYPE_INT64: [-(2**63), 2**63 - 1],
    FieldDescriptor.TYPE_UINT32: [2**32 - 1],
    FieldDescriptor.TYPE_UINT64: [2**64 - 1],
    FieldDescriptor.TYPE_BOOL: [True],
    FieldDescriptor.TYPE_DOUBLE: [float("nan"), 1e308],
    FieldDescriptor.TYPE_FLOAT: [float("nan"), 3e38],
    FieldDescriptor.TYPE_ENUM: [2**31 - 1, -1],
}
DEEPEST = 2
NOT_A_MESSAGE = (b"\xff", b"\x0a\xff", b"\x0b" * 20_000)


def all_methods() -> list[MethodDescriptor]:
    modules = [
        importlib.import_module(f"whence.v1.{module.name}")
        for module in pkgutil.iter_modules(whence.v1.__path__)
    ]
    return [
        method
        for module in (*modules, *STANDARD)
        if hasattr(module, "DESCRIPTOR")
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def extreme_requests(message_type: Descriptor, depth: int = 0) -> Iterator[Message]:
    """The empty message, and one for each extreme value of each field."""
    make = message_factory.GetMessageClass(message_type)
    yield make()
    for field in message_type.fields:
        if field.message_type is not None:
            if field.message_type.GetOptions().map_entry or depth == DEEPEST:
                continue
            for inner in extreme_requests(field.message_type, depth + 1):
                yield make(**{field.name: [inner] if field.is_repeated else inner})
            continue
        for value in EXTREMES[field.type]:
            yield make(**{field.name: [value] * 3 if field.is_repeated else value})


def outcome(
    channel: grpc.Channel, method: MethodDescriptor, raw: bytes, stream_timeout_s: float = 0.1
) -> tuple[grpc.StatusCode, str]:
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.client_streaming:
            list(channel.stream_stream(path)(iter([raw]), timeout=stream_timeout_s))
        elif method.server_streaming:
            call = channel.unary_stream(path)(raw, timeout=stream_timeout_s)
            for _ in call:
                call.cancel()
                break
        else:
            channel.unary_unary(path)(raw, timeout=60)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, "served"


@pytest.mark.parametrize("method", all_methods(), ids=lambda m: m.full_name)
def test_no_request_makes_an_internal_error(
    server: ServerProcess, channel: grpc.Channel, method: MethodDescriptor
) -> None:
    num_lines = len(server.log)
    requests = [m.SerializeToString() for m in extreme_requests(method.input_type)]
    outcomes = {raw[:80]: outcome(channel, method, raw) for raw in requests}
    assert {raw: told for raw, told in outcomes.items() if told[0] not in EXPECTED} == {}
    assert all(reason for _, reason in outcomes.values())
    for raw in NOT_A_MESSAGE:
        # Refused at once: only on a machine that stands still does it take time.
        refused, _ = outcome(channel, method, raw, stream_timeout_s=60)
        assert refused is grpc.StatusCode.INVALID_ARGUMENT
    assert [line for line in server.log[num_lines:] if "Traceback" in line] == []


def test_unknown_methods_are_unimplemented(channel: grpc.Channel) -> None:
    for path in ("/whence.v1.TraceService/Nothing", "/whence.v1.Nothing/Get", "/", "x"):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert failure_of(caught.value).reason == "METHOD_NOT_FOUND"


def test_health_of_an_unknown_service(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(
            "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest.SerializeToString
        )(health_pb2.HealthCheckRequest(service="nothing"))
    failure = failure_of(caught.value)
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "SERVICE_NOT_FOUND")


def test_health_lists_every_service(channel: grpc.Channel) -> None:
    listed = channel.unary_unary(
        "/grpc.health.v1.Health/List",
        health_pb2.HealthListRequest.SerializeToString,
        health_pb2.HealthListResponse.FromString,
    )(health_pb2.HealthListRequest())
    ours = {m.containing_service.full_name for m in all_methods() if "whence" in m.full_name}
    assert set(listed.statuses) == {"", *ours}
    serving = health_pb2.HealthCheckResponse.SERVING
    assert {state.status for state in listed.statuses.values()} == {serving}


def test_more_faults_than_headers_can_hold(channel: grpc.Channel) -> None:
    biases = {1_000_000 + i: float("nan") for i in range(600)}
    request = g.GenerateRequest(
        prompt="x", decoding=g.Decoding(greedy=g.Greedy(), logit_bias=biases)
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request))
    failure = failure_of(caught.value)
    assert failure.code is grpc.StatusCode.INVALID_ARGUMENT
    # Two faults of each: it is not finite, and there is no token of that id.
    assert failure.metadata["num_violations"] == "1200"
    assert 0 < len(failure.fields) < 100
    assert set(failure.fields) <= {f"decoding.logit_bias[{i}]" for i in biases}
    assert failure.message.endswith("more")
    ((_, details),) = caught.value.trailing_metadata()
    on_the_wire = len(urllib.parse.quote(failure.message)) + len(base64.b64encode(details))
    assert on_the_wire < 2_048


def test_a_request_that_is_too_large_is_told_so_by_the_server(channel: grpc.Channel) -> None:
    """With details: clients resume a stream after the status that gRPC itself gives."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(g.GenerateRequest(prompt="x" * (5 << 20))))
    failure = failure_of(caught.value)
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "REQUEST_TOO_LARGE",
    )
    assert failure.metadata["max_bytes"] == str(4 << 20)
    assert "--max-message-bytes" in failure.message
    # gRPC refuses far larger ones by itself.
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(g.GenerateRequest(prompt="x" * (17 << 20))))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure_of(caught.value).reason == ""
    assert "larger than max" in caught.value.details()


async def test_a_burst_is_served_whole(server: ServerProcess) -> None:
    """More at once than gRPC's queue of 1,000, and than one connection's streams."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(server.target, options) as one,
        grpc.aio.insecure_channel(server.target, options) as other,
    ):

        async def call(channel: grpc.aio.Channel) -> grpc.StatusCode:
            try:
                await trace_pb2_grpc.TraceServiceStub(channel).ListGenerations(
                    trace_pb2.ListGenerationsRequest(page_size=1), timeout=60
                )
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        calls = [call(channel) for channel in (one, other) for _ in range(1_500)]
        assert Counter(await asyncio.gather(*calls)) == {grpc.StatusCode.OK: 3_000}
