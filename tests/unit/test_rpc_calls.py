"""Wrapping of every method: deadlines, malformed messages, bugs."""

import grpc
import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON, Sampler

from whence.v1 import trace_pb2
from whence_server.domain.errors import JournalError
from whence_server.domain.generation import CallRecord
from whence_server.rpc.calls import Call, CallLog, Endpoint, Method, make_service_handler


class AbortError(Exception):
    """Exception of an aborted call, as gRPC raises it."""


class Context:
    """The parts of a call's context that the wrapping uses."""

    def __init__(self, time_remaining_s: float | None = None, peer: str = "ipv4:127.0.0.1:9"):
        self._time_remaining_s = time_remaining_s
        self._peer = peer
        self.message: object = None
        self.aborted: tuple[grpc.StatusCode, str] | None = None

    def time_remaining(self) -> float | None:
        return self._time_remaining_s

    def peer(self) -> str:
        return self._peer

    async def read(self) -> object:
        return self.message

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    async def abort(self, code: grpc.StatusCode, message: str, metadata: object) -> None:
        self.aborted = (code, message)
        raise AbortError


class CallDetails:
    method = "/s/Get"
    invocation_metadata = ()


class Wrapped:
    """Wrap one method; return its handler and the records of its calls."""

    def __init__(self, error: Exception | None = None, sampler: Sampler = DEFAULT_ON) -> None:
        self.records: list[CallRecord] = []
        self._error = error
        endpoints = [Endpoint("127.0.0.1", 1), Endpoint("/s", None)]
        log = CallLog(self.records.append, endpoints, sampler)
        method = Method("Get", trace_pb2.GetGenerationRequest, unary=self.get, recorded=True)
        handler = make_service_handler("s", [method], log).service(CallDetails)
        self._call, self._parse = handler.stream_unary, handler.request_deserializer

    async def get(self, request: trace_pb2.GetGenerationRequest, call: Call) -> bytes:
        if self._error is not None:
            raise self._error
        call.generation_id = request.generation_id
        return b"answer"

    async def call(self, context: Context, raw: bytes = b"") -> bytes:
        context.message = self._parse(raw)
        return await self._call(None, context)


async def test_call_is_recorded() -> None:
    wrapped = Wrapped()
    raw = trace_pb2.GetGenerationRequest(generation_id="g").SerializeToString()
    assert await wrapped.call(Context(peer="unix:"), raw) == b"answer"
    (record,) = wrapped.records
    assert (record.method, record.status_code, record.generation_id) == ("s/Get", 0, "g")
    assert (record.server_address, record.server_port) == ("/s", None)
    assert record.end_time_ns >= record.start_time_ns


async def test_call_that_is_not_sampled_is_recorded() -> None:
    wrapped = Wrapped(sampler=ALWAYS_OFF)
    await wrapped.call(Context())
    (record,) = wrapped.records
    assert not record.trace_context.sampled
    wrapped = Wrapped()
    await wrapped.call(Context())
    assert wrapped.records[0].trace_context.sampled


async def test_call_after_its_deadline_is_not_run() -> None:
    wrapped, context = Wrapped(AssertionError("it was called")), Context(time_remaining_s=-0.1)
    with pytest.raises(AbortError):
        await wrapped.call(context)
    assert context.aborted is not None
    assert context.aborted[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    assert wrapped.records[0].status_code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_malformed_message_is_invalid_argument() -> None:
    wrapped, context = Wrapped(), Context()
    with pytest.raises(AbortError):
        await wrapped.call(context, b"\xff\xff")
    assert context.aborted is not None
    assert context.aborted[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("error", [KeyError("a secret"), JournalError("disk full: /a/secret/path")])
async def test_details_of_internal_errors_are_not_sent(error: Exception) -> None:
    wrapped, context = Wrapped(error), Context()
    with pytest.raises(AbortError):
        await wrapped.call(context)
    assert context.aborted is not None
    code, message = context.aborted
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in message
    assert wrapped.records[0].trace_context.trace_id in message
