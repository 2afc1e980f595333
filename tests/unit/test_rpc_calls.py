"""Wrapping of every method: deadlines, malformed messages, bugs."""

import grpc
import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON, Sampler
from panics import make_panic

from whence.v1 import trace_pb2
from whence.v1.call_pb2 import Call
from whence_server.domain.errors import (
    FieldViolation,
    InvalidRequestError,
    JournalError,
    QueueFullError,
)
from whence_server.domain.generation import CallError, CallRecord
from whence_server.journal.codec import encode_call
from whence_server.rpc import calls
from whence_server.rpc.callers import parse_peer
from whence_server.rpc.calls import CallLog, Endpoint, Method, make_service_handler


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

    def __init__(self, error: BaseException | None = None, sampler: Sampler = DEFAULT_ON) -> None:
        self.records: list[CallRecord] = []
        self._error = error
        endpoints = [Endpoint("127.0.0.1", 1), Endpoint("/s", None)]
        log = CallLog(self.records.append, endpoints, sampler)
        method = Method("Get", trace_pb2.GetGenerationRequest, unary=self.get, recorded=True)
        handler = make_service_handler("s", [method], log).service(CallDetails)
        self._call, self._parse = handler.stream_unary, handler.request_deserializer

    async def get(self, request: trace_pb2.GetGenerationRequest, call: calls.Call) -> bytes:
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


async def test_panic_fails_its_own_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    panic = make_panic()
    assert not isinstance(panic, Exception)
    wrapped, context = Wrapped(panic), Context()
    with pytest.raises(AbortError):
        await wrapped.call(context)
    assert context.aborted is not None
    code, message = context.aborted
    assert code is grpc.StatusCode.INTERNAL
    (record,) = wrapped.records
    assert record.trace_context.trace_id in message
    assert record.status_code == grpc.StatusCode.INTERNAL.value[0]
    assert record.error == CallError(exception_type="pyo3_runtime.PanicException")
    assert [line.getMessage() for line in caplog.records] == ["s/Get failed"]


async def test_end_of_the_process_is_no_error_of_a_call() -> None:
    wrapped, context = Wrapped(SystemExit(3)), Context()
    with pytest.raises(SystemExit):
        await wrapped.call(context)
    assert context.aborted is None


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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            QueueFullError(3, 1.5),
            CallError(
                "QUEUE_FULL",
                message="3 sequences are waiting already (--max-queue); try again in 1.5 s",
            ),
        ),
        (
            InvalidRequestError(
                FieldViolation("", "is odd"), FieldViolation("a.b", "is wrong: secret", "is wrong")
            ),
            CallError("INVALID_REQUEST", "a.b", "is odd; a.b: is wrong"),
        ),
        (
            InvalidRequestError(FieldViolation("a", "x" * 500)),
            CallError("INVALID_REQUEST", "a", "a: " + "x" * 297),
        ),
        (KeyError("a secret"), CallError(exception_type="KeyError")),
        (
            JournalError("disk full: /a/secret/path"),
            CallError(exception_type="whence_server.domain.errors.JournalError"),
        ),
    ],
)
async def test_a_call_that_fails_is_recorded_with_its_error(
    error: Exception, expected: CallError
) -> None:
    wrapped = Wrapped(error)
    with pytest.raises(AbortError):
        await wrapped.call(Context())
    assert wrapped.records[0].error == expected
    call = Call.FromString(encode_call(wrapped.records[0]))
    told = call.error
    assert expected == CallError(told.reason, told.field, told.message, told.exception_type)


async def test_a_malformed_message_is_recorded_as_the_callers_error() -> None:
    wrapped = Wrapped()
    with pytest.raises(AbortError):
        await wrapped.call(Context(), b"\xff\xff")
    error = wrapped.records[0].error
    assert error is not None
    assert error.reason == "INVALID_REQUEST"
    assert error.message.startswith("the bytes are not a whence.v1.GetGenerationRequest")


async def test_a_call_without_an_error_has_none_on_record() -> None:
    wrapped = Wrapped()
    await wrapped.call(Context())
    assert wrapped.records[0].error is None
    assert not Call.FromString(encode_call(wrapped.records[0])).HasField("error")


@pytest.mark.parametrize(
    ("peer", "address", "port"),
    [
        ("ipv4:127.0.0.1:50000", "127.0.0.1", 50_000),
        ("ipv6:%5B::1%5D:50000", "::1", 50_000),
        ("ipv6:[fe80::1%25eth0]:1", "fe80::1%eth0", 1),
        ("unix:", "unix", None),
        ("unix:/run/whence.sock", "unix", None),
        ("ipv4:127.0.0.1:99999", "ipv4:127.0.0.1:99999", None),
        ("fd:7", "fd:7", None),
        ("", "", None),
    ],
)
def test_parse_peer_reads_the_address_and_the_port(
    peer: str, address: str, port: int | None
) -> None:
    assert parse_peer(peer) == (address, port)
