"""Calls that have sent their headers and no message yet, against a real gRPC server."""

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from waiting import wait_until

from whence.v1 import model_pb2
from whence_server.access.gate import Gate
from whence_server.access.token_file import TokenFile
from whence_server.domain.generation import CallRecord
from whence_server.rpc.calls import Call, CallLog, Method, make_service_handler

# Any method of the table that every caller may call.
SERVICE, METHOD = "whence.v1.ModelService", "ListModels"
TOKEN = "a-secret"
REQUEST = model_pb2.ListModelsRequest()


async def answer(request: model_pb2.ListModelsRequest, call: Call) -> bytes:
    del request, call
    return b"answer"


@dataclass
class Served:
    """A server with one method, whose callers may run one call at a time."""

    path: Path
    gate: Gate
    channel: grpc.aio.Channel
    records: list[CallRecord] = field(default_factory=list)

    def open_call(self) -> Any:
        """Send a call's headers alone."""
        method = self.channel.stream_unary(f"/{SERVICE}/{METHOD}")
        return method(metadata=(("authorization", f"Bearer {TOKEN}"),))

    async def send(self) -> bytes:
        """Send a whole call."""
        method = self.channel.unary_unary(f"/{SERVICE}/{METHOD}")
        metadata = (("authorization", f"Bearer {TOKEN}"),)
        answered: bytes = await method(REQUEST.SerializeToString(), metadata=metadata)
        return answered

    async def wait_running(self, number: int) -> None:
        await wait_until(lambda: len(self.gate.sessions._running) == number)

    @property
    def codes(self) -> list[int]:
        return [record.status_code for record in self.records]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    path = tmp_path / "callers"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    path.write_text(json.dumps({"id": "alice", "sha256": digest, "scopes": []}))
    gate = Gate(TokenFile(path), max_calls=1)
    records: list[CallRecord] = []
    method = Method(METHOD, model_pb2.ListModelsRequest, unary=answer, recorded=True)
    server = grpc.aio.server()
    handler = make_service_handler(SERVICE, [method], CallLog(records.append), gate=gate)
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(path, gate, channel, records)
    await server.stop(None)


async def expect(call: Any, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code


async def test_a_call_counts_once_from_its_headers_on(served: Served) -> None:
    waiting = served.open_call()
    await served.wait_running(1)
    await expect(served.send(), grpc.StatusCode.RESOURCE_EXHAUSTED)
    await waiting.write(REQUEST.SerializeToString())
    assert await waiting == b"answer"
    assert await served.send() == b"answer"
    # A call is recorded after its caller has its answer.
    await wait_until(lambda: len(served.records) == 3)
    assert sorted(served.codes) == [0, 0, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]]


async def test_a_call_that_waits_ends_with_its_token(served: Served) -> None:
    waiting = served.open_call()
    await served.wait_running(1)
    served.path.write_text("")
    served.gate.check_running()
    await expect(waiting, grpc.StatusCode.UNAUTHENTICATED)
    await served.wait_running(0)


async def test_a_message_after_the_revocation_is_not_answered(served: Served) -> None:
    waiting = served.open_call()
    await served.wait_running(1)
    served.path.write_text("")
    # Before the next look at the running calls.
    await waiting.write(REQUEST.SerializeToString())
    await expect(waiting, grpc.StatusCode.UNAUTHENTICATED)
    await wait_until(lambda: len(served.records) > 0)
    assert served.codes == [grpc.StatusCode.UNAUTHENTICATED.value[0]]
