"""Wrapping of every RPC method: parsing, errors as statuses, records of calls."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler

from whence_server import logs
from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.access.sessions import ANYBODY, Admission
from whence_server.domain.errors import (
    DeadlinePassedError,
    FieldViolation,
    InvalidRequestError,
    RequestTooLargeError,
    WhenceError,
)
from whence_server.domain.errors.panics import is_panic
from whence_server.domain.generation import CallError, CallRecord
from whence_server.domain.identity import Identity
from whence_server.domain.occurrences import Caller
from whence_server.domain.tracing import TraceContext
from whence_server.rpc.auditing import note_call, note_outcome, read_reason
from whence_server.rpc.call_errors import make_call_error
from whence_server.rpc.callers import parse_peer
from whence_server.rpc.credentials import read_credentials
from whence_server.rpc.one_message import read_one_message
from whence_server.rpc.status import GRPC_CODES, abort
from whence_server.rpc.stream_writer import StreamWriter
from whence_server.rpc.wire_counts import check_wire
from whence_server.telemetry.context import read_trace_context

_log = logging.getLogger(__name__)

# Time that a request may have been under way.
_WAY_S = 0.1

MAX_MESSAGE_BYTES = 4 << 20
"""Maximum size of a request, in bytes, unless it is configured."""

Request = TypeVar("Request", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(slots=True)
class Call:
    """One call as a servicer's method sees it, besides the request."""

    trace_context: TraceContext
    time_ns: int
    """Unix time of the call's arrival."""
    monotonic_ns: int
    peer: str
    admission: Admission = ANYBODY
    """Admission of the caller."""
    reason: str = ""
    """Reason that the caller gave, for the audit."""
    is_noted: bool = False
    """True once the audit has the call."""
    method: str = ""
    """Fully qualified name of the method."""
    read_remaining_s: Callable[[], float | None] = lambda: None
    """Returns the seconds until the call's deadline; None if it has none."""
    generation_id: str = ""
    """Id of the generation that the method starts or follows; "" for other methods."""
    outcome: str = ""
    """Result in words that the audit has besides the call; "" for most methods."""
    error: CallError | None = None
    """Error that the call ended with, for its record."""
    make_filler: Callable[[], bytes] | None = None
    """Makes the message that a stream sends when it was silent; None for no message."""
    read_next: Callable[[], Awaitable[Any]] | None = None
    """Returns the next request message of a stream, None after the last; None before the call
    runs, and for unary methods."""

    @property
    def identity(self) -> Identity:
        """The caller."""
        return self.admission.identity

    @property
    def caller(self) -> Caller:
        """The call, and the address that it came from, for records."""
        address, port = parse_peer(self.peer)
        return Caller(self.method, self.trace_context, address, port, self.identity.id)

    def has_deadline_passed(self) -> bool:
        """Return whether the call had a deadline that has passed."""
        remaining_s = self.read_remaining_s()
        return remaining_s is not None and remaining_s <= 0

    def was_ended_by_deadline(self) -> bool:
        """Return whether the end of a call that its caller ended is its deadline's.

        The caller's clock began earlier, by the request's way here, and its cancel may come first.
        """
        remaining_s = self.read_remaining_s()
        return remaining_s is not None and remaining_s <= _WAY_S


UnaryMethod: TypeAlias = Callable[[Any, Call], Awaitable[bytes]]
StreamMethod: TypeAlias = Callable[[Any, Call], AsyncGenerator[bytes, None]]


@dataclass(frozen=True, slots=True)
class Method(Generic[Request]):
    """One method of a servicer; exactly one of `unary` and `stream` is set."""

    name: str
    request_type: type[Request]
    unary: UnaryMethod | None = None
    stream: StreamMethod | None = None
    recorded: bool = False
    """True if calls are recorded in the journal, and so exported as SERVER spans."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address on which the server listens, as in SERVER spans."""

    address: str
    port: int | None


@dataclass(frozen=True, slots=True)
class CallLog:
    """Recording of calls after their end."""

    record: Callable[[CallRecord], None]
    endpoints: list[Endpoint] = field(default_factory=list)
    sampler: Sampler = DEFAULT_ON
    """Decides at a call's start if its spans are exported; the call is recorded in any case."""

    def find_endpoint(self, peer: str) -> Endpoint:
        """Return the endpoint to which a peer is connected, by the kind of its address."""
        by_socket = peer.startswith("unix:")
        for endpoint in self.endpoints:
            if (endpoint.port is None) == by_socket:
                return endpoint
        return Endpoint("", None)


class Malformed:
    """Bytes that are not a message of the method's type."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


Parsed: TypeAlias = Message | Malformed | WhenceError
"""A request, or the reason why it is refused."""


def make_service_handler(
    service: str,
    methods: list[Method[Any]],
    calls: CallLog,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    progress_interval_s: float = 0.0,
    *,
    gate: Gate = OPEN_GATE,
) -> grpc.GenericRpcHandler:
    """Return gRPC's handler of a service whose methods are parsed, guarded and recorded.

    Args:
        service: full name of the service.
        methods: its methods.
        calls: recording of its calls.
        max_message_bytes: maximum size of a request.
        progress_interval_s: seconds of silence after which a stream sends its filler; 0 for never.
        gate: admits callers.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in methods:
        guarded = _GuardedMethod(
            service, method, calls, max_message_bytes, progress_interval_s, gate
        )
        make = (
            grpc.stream_unary_rpc_method_handler
            if method.unary
            else grpc.stream_stream_rpc_method_handler
        )
        handlers[method.name] = make(
            guarded.handle_unary if method.unary else guarded.handle_stream,
            request_deserializer=guarded.parse,
            response_serializer=None,
        )
    return grpc.method_handlers_generic_handler(service, handlers)


class _GuardedMethod:
    """Wrapper of one method: it admits callers, turns errors into statuses, and records the end."""

    def __init__(  # noqa: PLR0917 - the parts of a wrapper
        self,
        service: str,
        method: Method[Any],
        calls: CallLog,
        max_message_bytes: int,
        progress_interval_s: float,
        gate: Gate,
    ) -> None:
        self._gate = gate
        self._name = f"{service}/{method.name}"
        self._method = method
        self._calls = calls
        self._max_message_bytes = max_message_bytes
        self._progress_interval_s = progress_interval_s

    def parse(self, raw: bytes) -> "Parsed":
        # Never raises: gRPC would end the call with INTERNAL, although the caller is at fault.
        if len(raw) > self._max_message_bytes:
            return RequestTooLargeError(len(raw), self._max_message_bytes)
        try:
            check_wire(raw, self._method.request_type.DESCRIPTOR)
            return cast("Message", self._method.request_type.FromString(raw))
        except InvalidRequestError as error:
            return error
        except DecodeError as error:
            return Malformed(str(error))

    async def handle_unary(self, _messages: object, context: Context) -> bytes:
        response = b""

        async def run(parsed: Message, call: Call) -> None:
            nonlocal response
            assert self._method.unary is not None  # noqa: S101 - chosen by make_service_handler
            response = await self._method.unary(parsed, call)

        await self._run(context, run)
        return response

    async def handle_stream(self, _messages: object, context: Context) -> None:
        async def run(parsed: Message, call: Call) -> None:
            assert self._method.stream is not None  # noqa: S101 - chosen by make_service_handler

            def make_filler() -> bytes | None:
                return None if call.make_filler is None else call.make_filler()

            call.read_next = lambda: self._read_next(context, call)

            with StreamWriter(context.write, make_filler, self._progress_interval_s) as writer:
                async with aclosing(self._method.stream(parsed, call)) as messages:
                    async for message in messages:
                        # A watch may last for days: it is noted before it shows anything.
                        note_call(self._gate.trail, call, parsed, 0)
                        await writer.write(message)

        await self._run(context, run)

    async def _read_next(self, context: Context, call: Call) -> Message | None:
        message: Any = await context.read()
        return None if message is grpc.aio.EOF else self._check(message, call)

    async def _run(
        self,
        context: Context,
        run: Callable[[Message, Call], Awaitable[None]],
    ) -> None:
        call = Call(
            read_trace_context(
                context.invocation_metadata() or (), self._name, self._calls.sampler
            ),
            time.time_ns(),
            time.monotonic_ns(),
            context.peer(),
            method=self._name,
            read_remaining_s=context.time_remaining,
        )
        context_of_trace = call.trace_context
        with logs.add_ids(trace_id=context_of_trace.trace_id, span_id=context_of_trace.span_id):
            # Strangers put nothing on record, and nobody reads their messages.
            if not self._gate.is_open:
                call.admission = await self._admit(context)
            if self._gate.trail.is_on:
                call.reason = read_reason(context.invocation_metadata() or ())
            # A call without a message is not put on record: it has cost its caller nothing.
            request = await self._read_request(context, call)
            await self._run_call(request, context, call, run)

    async def _admit(self, context: Context) -> Admission:
        try:
            return await self._gate.admit(self._name, read_credentials(context))
        except WhenceError as error:
            await abort(context, error)

    async def _read_request(self, context: Context, call: Call) -> Parsed:
        # While it waits, a call counts among its caller's calls, and ends with its credentials.
        try:
            with self._gate.sessions.keep(call.admission):
                return cast("Parsed", await read_one_message(context))
        except WhenceError as error:
            # It gets its status, and its place on record, as one that was refused later.
            return error

    async def _run_call(
        self,
        request: Parsed,
        context: Context,
        call: Call,
        run: Callable[[Message, Call], Awaitable[None]],
    ) -> None:
        code = grpc.StatusCode.OK
        try:
            with self._gate.sessions.keep(call.admission):
                await run(self._check(request, call), call)
        except WhenceError as error:
            code = GRPC_CODES[error.code]
            call.error = make_call_error(error)
            if code is grpc.StatusCode.INTERNAL:
                _log.exception("%s failed", self._name, extra=_make_log_fields(call))
                # Details go to the log only: they may hold paths or secrets.
                await abort(context, _make_internal_error(call.trace_context.trace_id))
            await abort(context, error)
        except asyncio.CancelledError:
            code = _get_cancelled_code(call)
            raise
        except BaseException as error:  # the boundary: any bug becomes INTERNAL
            if not (isinstance(error, Exception) or is_panic(error)):
                raise
            code = grpc.StatusCode.INTERNAL
            call.error = make_call_error(error)
            _log.exception("%s failed", self._name, extra=_make_log_fields(call))
            await abort(context, _make_internal_error(call.trace_context.trace_id))
        finally:
            note_call(self._gate.trail, call, request, code.value[0])
            note_outcome(self._gate.trail, call)
            if self._method.recorded:
                self._record(call, code)

    def _check(self, request: Parsed, call: Call) -> Message:
        if call.has_deadline_passed():
            raise DeadlinePassedError
        if isinstance(request, WhenceError):
            raise request
        if isinstance(request, Malformed):
            expected = self._method.request_type.DESCRIPTOR.full_name
            raise InvalidRequestError(
                FieldViolation(
                    "",
                    f"the bytes are not a {expected} (text must be valid UTF-8, without lone "
                    f"surrogates): {request.reason}",
                )
            )
        return request

    def _record(self, call: Call, code: grpc.StatusCode) -> None:
        endpoint = self._calls.find_endpoint(call.peer)
        elapsed_ns = time.monotonic_ns() - call.monotonic_ns
        self._calls.record(
            CallRecord(
                trace_context=call.trace_context,
                method=self._name,
                start_time_ns=call.time_ns,
                end_time_ns=call.time_ns + elapsed_ns,
                status_code=code.value[0],
                generation_id=call.generation_id,
                server_address=endpoint.address,
                server_port=endpoint.port,
                error=call.error,
                caller_id=call.identity.id,
            )
        )


def _make_log_fields(call: Call) -> dict[str, str]:
    return {logs.GENERATION_ID: call.generation_id} if call.generation_id else {}


def _get_cancelled_code(call: Call) -> grpc.StatusCode:
    if call.was_ended_by_deadline():
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def _make_internal_error(trace_id: str) -> WhenceError:
    return WhenceError(f"an error inside the server; its log has it under trace {trace_id}")
