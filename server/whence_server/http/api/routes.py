"""Routes of the JSON API: the RPCs of the contract, through the same methods as over gRPC."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from whence_server.access.audit import REASON_KEY, AuditTrail, parse_reason
from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.domain.api_routes import API, API_ROUTES, ApiRoute, Form
from whence_server.domain.errors import RouteNotFoundError
from whence_server.http.api.answering import JSON, answer_read, keep
from whence_server.http.api.errors import END, ApiErrors
from whence_server.http.api.forgery import check_unforged
from whence_server.http.api.messages import (
    get_message_type,
    make_json,
    parse_body,
    parse_query,
)
from whence_server.http.api.streaming import (
    LAST_EVENT_ID,
    RESUMED,
    read_file,
    read_joined,
    stream_events,
)
from whence_server.http.bodies import read_json_object
from whence_server.http.exchange import Exchange, guard
from whence_server.http.origins import OWN_PAGES, Origins
from whence_server.http.server import Answer
from whence_server.rpc.auditing import note_call
from whence_server.rpc.calls import Call, CallLog, Method

Services = Mapping[str, Sequence[Method[Any]]]
"""Methods by the full name of their service."""
_NO_CONTENT = 204


def list_api_routes(
    services: Services,
    calls: CallLog,
    gate: Gate = OPEN_GATE,
    origins: Origins = OWN_PAGES,
    *,
    max_body_bytes: int,
    interval_s: float = 0.0,
) -> Mapping[tuple[str, str], Answer]:
    """Return the handlers by request method and path, of the methods that the server has.

    Args:
        services: the server's methods.
        calls: recording of requests.
        gate: admits callers.
        origins: rule for requests of browsers.
        max_body_bytes: maximum size of a request's body.
        interval_s: seconds of silence after which a stream gets a message or a comment; 0 for
            never.
    """
    methods = {f"{name}/{it.name}": it for name, listed in services.items() for it in listed}
    errors = ApiErrors()
    routes: dict[tuple[str, str], Answer] = {}
    for route in API_ROUTES:
        method = methods.get(route.rpc)
        if method is None:
            continue
        handler = _ApiHandler(route, method, gate.trail, max_body_bytes, interval_s)
        routes[route.verb, route.path] = guard(
            route.path,
            origins.protect(handler.answer),
            errors,
            calls,
            gate=gate,
            recorded=method.recorded,
            takes_login=True,
        )
    preflight = origins.protect(origins.answer_preflight)
    for path in {path for _, path in routes}:
        routes["OPTIONS", path] = guard(path, preflight, errors, calls, recorded=False)
    refuse = guard("", origins.protect(_refuse), errors, calls, recorded=False)
    return routes | {("*", f"{API}/{{path:.*}}"): refuse}


async def _refuse(exchange: Exchange) -> web.StreamResponse:
    raise RouteNotFoundError(exchange.request.method, exchange.request.path)


class _ApiHandler:
    """Handler of one route."""

    def __init__(
        self,
        route: ApiRoute,
        method: Method[Any],
        trail: AuditTrail,
        max_body_bytes: int,
        interval_s: float,
    ) -> None:
        self._trail = trail
        self._route = route
        self._method = method
        self._max_body_bytes = max_body_bytes
        self._interval_s = interval_s
        self._request_type: type[Message] = method.request_type
        self._response_type = _find_response_type(route.rpc)

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """Call the method with the request of a path, a query and a body."""
        if exchange.request.headers.get(LAST_EVENT_ID) == END:
            # The reader of a stream that has ended comes back by itself, until it is told not to.
            return web.Response(status=_NO_CONTENT, headers=exchange.make_headers())
        request = await self._read_request(exchange)
        call = make_call(exchange)
        exchange.call, exchange.asked = call, request
        if self._method.unary is not None:
            return await self._answer_unary(exchange, request, call)
        if self._method.stream is None:
            raise RuntimeError(f"{self._route.rpc} has neither form")
        messages = self._method.stream(request, call)
        match self._route.form:
            case Form.JOINED:
                raw = await read_joined(messages, self._response_type)
                return await answer_read(exchange, raw, self._make_json)
            case Form.FILE:
                raw = await read_file(messages, self._response_type)
                return await answer_read(exchange, raw, keep)
            case Form.EVENTS:
                noted = self._note_first(messages, call, request)
                return await stream_events(
                    exchange, noted, call, self._response_type, self._interval_s
                )

    async def _note_first(
        self, messages: AsyncGenerator[bytes, None], call: Call, request: Message
    ) -> AsyncGenerator[bytes, None]:
        """Yield messages; a watch may last for days, and is noted before it shows anything."""
        async with aclosing(messages):
            async for message in messages:
                note_call(self._trail, call, request, 0)
                yield message

    async def _answer_unary(
        self, exchange: Exchange, request: Message, call: Call
    ) -> web.StreamResponse:
        if self._method.unary is None:
            raise RuntimeError(f"{self._route.rpc} streams")
        raw = await self._method.unary(request, call)
        if not self._route.writes:
            return await answer_read(exchange, raw, self._make_json)
        body = await self._make_json(raw)
        return web.Response(body=body, content_type=JSON, headers=exchange.make_headers())

    async def _make_json(self, raw: bytes) -> bytes:
        return await make_json(self._response_type, raw)

    async def _read_request(self, exchange: Exchange) -> Message:
        request = exchange.request
        path = dict(request.match_info)
        if not self._route.writes:
            query = list(request.query.items())
            query += self._read_last_event_id(request)
            return parse_query(self._request_type, path, query)
        check_unforged(request)
        if not request.can_read_body:
            return await parse_body(self._request_type, self._place(path, {}), {}, 0)
        body = await read_json_object(request, self._max_body_bytes)
        num_bytes = request.content_length or self._max_body_bytes
        return await parse_body(self._request_type, self._place(path, body), body, num_bytes)

    def _place(self, path: dict[str, str], body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the path's parts as fields of the request, or of its field that they belong to."""
        within = self._route.within
        if not within:
            return path
        given = body.get(within, {})
        # What is no object is named by the parser.
        return {within: {**given, **path} if isinstance(given, dict) else given}

    def _read_last_event_id(self, request: web.Request) -> list[tuple[str, str]]:
        """Return the place that a reader who comes back has reached, as a parameter."""
        told = request.headers.get(LAST_EVENT_ID)
        field = RESUMED.get(self._request_type.DESCRIPTOR.name)
        return [(field, told)] if told and field else []


def make_call(exchange: Exchange) -> Call:
    """Return the request as a call of an RPC."""
    caller = exchange.caller
    host = f"[{caller.address}]" if ":" in caller.address else caller.address
    family = "ipv6" if ":" in caller.address else "ipv4"
    return Call(
        exchange.trace_context,
        exchange.time_ns,
        exchange.monotonic_ns,
        f"{family}:{host}:{caller.port}",
        exchange.admission,
        parse_reason(exchange.request.headers.get(REASON_KEY, "")),
        method=caller.method,
    )


def _find_response_type(rpc: str) -> type[Message]:
    service, _, name = rpc.partition("/")
    found = descriptor_pool.Default().FindServiceByName(service)
    return get_message_type(found.methods_by_name[name].output_type)
