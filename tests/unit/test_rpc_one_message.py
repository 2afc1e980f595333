"""Calls without a request message end, against a real gRPC server."""

from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2

from whence.v1 import trace_pb2
from whence_server.domain.generation import CallRecord
from whence_server.rpc import one_message
from whence_server.rpc.calls import Call, CallLog, Method, make_service_handler
from whence_server.rpc.standard import Health

HALF_CLOSED, SILENT = "ended without a request message", "no request message within"
METHODS = ["/s/Get", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List"]


async def get(request: trace_pb2.GetGenerationRequest, call: Call) -> bytes:
    del call
    return request.generation_id.encode()


@pytest.fixture
def records() -> list[CallRecord]:
    return []


@pytest.fixture
async def channel(records: list[CallRecord]) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    method = Method("Get", trace_pb2.GetGenerationRequest, unary=get, recorded=True)
    handlers = (
        make_service_handler("s", [method], CallLog(records.append)),
        Health().make_handler(),
    )
    server.add_generic_rpc_handlers(handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as made:
        yield made
    await server.stop(None)


@pytest.mark.parametrize("method", METHODS)
async def test_a_call_that_ends_without_a_message_is_refused(
    channel: grpc.aio.Channel, records: list[CallRecord], method: str
) -> None:
    call = channel.stream_unary(method)()
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError, match=HALF_CLOSED) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not records


@pytest.mark.parametrize("method", METHODS)
async def test_unary_call_without_a_message_is_ended_after_the_timeout(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(one_message, "MESSAGE_S", 0.1)
    with pytest.raises(grpc.aio.AioRpcError, match=SILENT) as caught:
        await channel.stream_unary(method)()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_stream_without_a_message_is_ended_after_the_timeout(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_message, "MESSAGE_S", 0.1)
    with pytest.raises(grpc.aio.AioRpcError, match=SILENT):
        await channel.stream_stream("/grpc.health.v1.Health/Watch")().read()


async def test_call_with_one_message_is_answered(
    channel: grpc.aio.Channel, records: list[CallRecord]
) -> None:
    request = trace_pb2.GetGenerationRequest(generation_id="a")
    assert await channel.unary_unary("/s/Get")(request.SerializeToString()) == b"a"
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    assert (await check(health_pb2.HealthCheckRequest())).status == 1
    assert [record.status_code for record in records] == [0]
