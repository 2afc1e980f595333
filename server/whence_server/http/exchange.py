"""One HTTP request: its place in a trace, its errors as answers, and its record."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Protocol

from aiohttp import web
from google.protobuf.message import Message

from whence_server import logs
from whence_server.access.audit import REASON_KEY, parse_reason
from whence_server.access.deeds import make_deed
from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.access.sessions import ANYBODY, Admission
from whence_server.domain.errors import Code, WhenceError
from whence_server.domain.errors.panics import is_panic
from whence_server.domain.generation import CallError, CallRecord, HttpExchange
from whence_server.domain.identity import Identity
from whence_server.domain.occurrences import Caller
from whence_server.domain.tracing import TraceContext
from whence_server.http.credentials import read_credentials, read_login
from whence_server.http.statuses import CLIENT_CLOSED_REQUEST, get_http_status
from whence_server.rpc.auditing import note_call
from whence_server.rpc.call_errors import make_call_error
from whence_server.rpc.calls import Call, CallLog
from whence_server.telemetry.context import read_trace_context

_log = logging.getLogger(__name__)

GENERATION_ID_HEADER = "whence-generation-id"
UNRECORDED_HEADER = "whence-unrecorded"


@dataclass(slots=True)
class Exchange:
    """One request as a handler sees it, besides its body."""

    request: web.Request
    route: str
    trace_context: TraceContext
    time_ns: int
    """Unix time of the request's arrival."""
    monotonic_ns: int
    admission: Admission = ANYBODY
    """Admission of the caller."""
    generation_id: str = ""
    """Id of the generation that the request starts; "" before it is started."""
    unrecorded_reason: str = ""
    """Reason for which the generation is not on record; "" if it is."""
    error: CallError | None = None
    """Error that the request ended with, for its record."""
    status: int = HTTPStatus.OK
    code: Code | None = None
    """The error's status; None without an error."""
    response: web.StreamResponse | None = field(default=None, repr=False)
    """The streamed answer, once it has begun."""
    call: Call | None = field(default=None, repr=False)
    """The call of an RPC that the request is; None for a route that is none."""
    asked: Message | None = field(default=None, repr=False)
    """The request of that RPC."""

    @property
    def identity(self) -> Identity:
        """The caller."""
        return self.admission.identity

    @property
    def caller(self) -> Caller:
        """The request, and the address that it came from, for records."""
        peer = self.request.transport and self.request.transport.get_extra_info("peername")
        address, port = (peer[0], peer[1]) if peer else ("", None)
        method = f"{self.request.method} {self.route}"
        return Caller(method, self.trace_context, address, port, self.identity.id)

    def take_generation_id(self) -> None:
        """Take the id of the generation that the call has found out."""
        if self.call is not None:
            self.generation_id = self.call.generation_id

    def make_headers(self) -> Mapping[str, str]:
        """Return the headers that name the generation and the request's span."""
        context = self.trace_context
        headers = {
            "traceparent": f"00-{context.trace_id}-{context.span_id}-{context.trace_flags:02x}"
        }
        if self.generation_id:
            # OpenAI's clients show the second as the id of the request.
            headers[GENERATION_ID_HEADER] = headers["x-request-id"] = self.generation_id
        if self.unrecorded_reason:
            headers[UNRECORDED_HEADER] = self.unrecorded_reason
        return headers


class ErrorRenderer(Protocol):
    """Writer of an error in the form that an API's clients know."""

    def render(self, error: WhenceError, status: int) -> bytes:
        """Return the body of an answer, as JSON."""

    async def write_to_stream(self, stream: web.StreamResponse, error: WhenceError) -> None:
        """Write the error as the last event of an answer that has begun."""


Handler = Callable[[Exchange], Awaitable[web.StreamResponse]]


def guard(
    route: str,
    handle: Handler,
    errors: ErrorRenderer,
    calls: CallLog,
    *,
    gate: Gate = OPEN_GATE,
    recorded: bool = True,
    takes_login: bool = False,
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Wrap a handler: its callers are admitted, its errors become answers, its requests recorded.

    Args:
        route: path of the requests.
        handle: handler of a request.
        errors: writer of its errors.
        calls: recording of requests.
        gate: admits callers.
        recorded: whether requests are put on record, and so exported as SERVER spans.
        takes_login: whether the cookie of a login counts as credentials.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        exchange = _begin(request, route, calls)
        context = exchange.trace_context
        with logs.add_ids(trace_id=context.trace_id, span_id=context.span_id):
            try:
                exchange.admission = await _admit(gate, exchange, takes_login)
            except WhenceError as error:
                # Strangers put nothing on record.
                return await _answer_error(exchange, error, errors)
            try:
                return await _answer(exchange, handle, errors, gate)
            except ConnectionResetError:
                # Nobody reads an answer, and aiohttp would log a client that went as a fault.
                return exchange.response or web.Response(status=CLIENT_CLOSED_REQUEST)
            finally:
                exchange.take_generation_id()
                _note(gate, exchange)
                if recorded:
                    calls.record(_make_record(exchange))

    return answer


def _begin(request: web.Request, route: str, calls: CallLog) -> Exchange:
    context = read_trace_context(
        request.headers.items(), f"{request.method} {route}", calls.sampler
    )
    return Exchange(request, route, context, time.time_ns(), time.monotonic_ns())


async def _admit(gate: Gate, exchange: Exchange, takes_login: bool) -> Admission:
    if gate.is_open:
        return ANYBODY
    request = exchange.request
    credentials = read_credentials(request, gate.logins if takes_login else None)
    admission = await gate.admit(f"{request.method} {exchange.route}", credentials)
    if not takes_login or request.headers.get("Authorization") or not credentials.authorization:
        return admission
    login = read_login(request)
    # The end of a login ends what it has begun.
    return replace(
        admission, is_valid=lambda: bool(gate.logins.find(login)) and admission.is_valid()
    )


async def _answer(
    exchange: Exchange, handle: Handler, errors: ErrorRenderer, gate: Gate
) -> web.StreamResponse:
    try:
        with gate.sessions.keep(exchange.admission):
            return await handle(exchange)
    except (asyncio.CancelledError, ConnectionResetError):
        # An answer that has begun keeps its status.
        exchange.code = Code.CANCELLED
        if exchange.response is None:
            exchange.status = CLIENT_CLOSED_REQUEST
        raise
    except WhenceError as error:
        return await _answer_error(exchange, error, errors)
    except BaseException as error:  # the boundary: any bug becomes 500
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        return await _answer_error(exchange, error, errors)


def _note(gate: Gate, exchange: Exchange) -> None:
    if not gate.trail.is_on:
        return
    status_code = 0 if exchange.code is None else exchange.code.value
    if exchange.call is not None:
        note_call(gate.trail, exchange.call, exchange.asked, status_code)
        return
    deed = make_deed(
        exchange.caller,
        exchange.identity,
        exchange.time_ns,
        status_code,
        generation_id=exchange.generation_id,
        reason=parse_reason(exchange.request.headers.get(REASON_KEY, "")),
    )
    if deed is not None:
        gate.trail.note(deed)


async def _answer_error(
    exchange: Exchange, error: BaseException, errors: ErrorRenderer
) -> web.StreamResponse:
    exchange.error = make_call_error(error)
    if not isinstance(error, WhenceError) or error.code is Code.INTERNAL:
        route, generation_id = exchange.route, exchange.generation_id
        fields = {logs.GENERATION_ID: generation_id} if generation_id else {}
        _log.error("%s failed", route, extra=fields, exc_info=error)
        # Details go to the log only: they may hold paths or secrets.
        error = WhenceError(
            "an error inside the server; its log has it under trace "
            f"{exchange.trace_context.trace_id}"
        )
    exchange.code = error.code
    if exchange.response is not None:
        await errors.write_to_stream(exchange.response, error)
        await exchange.response.write_eof()
        return exchange.response
    exchange.status = get_http_status(error)
    headers = dict(exchange.make_headers())
    if error.code is Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["Retry-After"] = str(max(round(retry_after_s), 1))
    return web.Response(
        status=exchange.status,
        body=errors.render(error, exchange.status),
        content_type="application/json",
        headers=headers,
    )


def _make_record(exchange: Exchange) -> CallRecord:
    transport = exchange.request.transport
    name = transport.get_extra_info("sockname") if transport else None
    elapsed_ns = time.monotonic_ns() - exchange.monotonic_ns
    method, route = exchange.request.method, exchange.route
    return CallRecord(
        trace_context=exchange.trace_context,
        method=f"{method} {route}",
        start_time_ns=exchange.time_ns,
        end_time_ns=exchange.time_ns + elapsed_ns,
        status_code=0 if exchange.code is None else exchange.code.value,
        generation_id=exchange.generation_id,
        server_address=name[0] if name else "",
        server_port=name[1] if name else None,
        error=exchange.error,
        http=HttpExchange(method, route, exchange.status),
        caller_id=exchange.identity.id,
    )
