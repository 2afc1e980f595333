"""An OTLP collector that misbehaves on purpose, over gRPC or HTTP, on real sockets."""

import asyncio
import email.utils
import gzip
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from aiohttp import web
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence_server.domain.otlp import OtlpProtocol, OtlpSettings, append_signal_path
from whence_server.telemetry.export.otlp_grpc import EXPORT_METHOD

PROTOBUF = {"content-type": "application/x-protobuf"}


@dataclass(frozen=True)
class Slow:
    """Accept the spans, stored or not, after a delay."""

    delay_s: float
    stored: bool = True


@dataclass(frozen=True)
class Answer:
    """Accept nothing, and answer with a status."""

    grpc_code: grpc.StatusCode
    http_status: int
    retry_delay_s: float | None = None
    as_date: bool = False
    """True for Retry-After as a date, over HTTP."""
    message: str = "as told"


@dataclass(frozen=True)
class Partial:
    """Accept all but the first spans, and report the others as rejected."""

    num_rejected: int
    message: str = "too old"


@dataclass(frozen=True)
class Cut:
    """Abort every connection instead of answering, with the spans stored or not."""

    stored: bool


@dataclass(frozen=True)
class Garbage:
    """Accept nothing, and answer OK with bytes that are no OTLP answer."""

    content_type: str = "application/x-protobuf"
    body: bytes = b"\xff\xff\xff not protobuf"


@dataclass(frozen=True)
class Noise:
    """Accept nothing, and send bytes that are no HTTP."""


Fault: TypeAlias = Slow | Answer | Partial | Cut | Garbage | Noise

UNAVAILABLE = Answer(grpc.StatusCode.UNAVAILABLE, 503)
INTERNAL = Answer(grpc.StatusCode.INTERNAL, 500)
FORBIDDEN = Answer(grpc.StatusCode.PERMISSION_DENIED, 403)
REFUSED = Answer(grpc.StatusCode.INVALID_ARGUMENT, 400)
TOO_LARGE = Answer(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    413,
    message="Received message larger than max (2 vs. 1)",
)
EXHAUSTED = Answer(grpc.StatusCode.RESOURCE_EXHAUSTED, 429)
"""Answer without a delay, which is not retryable in OTLP over gRPC."""
ALL_REJECTED = Partial(1_000_000, "no such tenant")
REFUSALS: dict[str, Fault] = {
    "refused": REFUSED,
    "unprocessable": Answer(grpc.StatusCode.FAILED_PRECONDITION, 422),
    "not found": Answer(grpc.StatusCode.NOT_FOUND, 404),
    "unimplemented": Answer(grpc.StatusCode.UNIMPLEMENTED, 405),
    "unauthenticated": Answer(grpc.StatusCode.UNAUTHENTICATED, 401),
    "forbidden": FORBIDDEN,
    "moved": Answer(grpc.StatusCode.OUT_OF_RANGE, 302),
    "internal": INTERNAL,
    "unknown": Answer(grpc.StatusCode.UNKNOWN, 599),
    "exhausted": EXHAUSTED,
    "too large": TOO_LARGE,
    "all rejected": ALL_REJECTED,
    "a page": Garbage("text/html", b"<html>Please log in</html>"),
}
"""Answers of destinations that accept no request at all."""


def exhausted(seconds: float, *, as_date: bool = False) -> Answer:
    return Answer(grpc.StatusCode.RESOURCE_EXHAUSTED, 429, seconds, as_date)


class Relay:
    """Proxy between clients and a server, which can abort all connections."""

    def __init__(self, port: int) -> None:
        self._upstream_port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self.refusing = False

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def make_noise(self) -> None:
        for writer in self._clients:
            writer.write(bytes(range(256)))
            writer.close()

    async def close(self) -> None:
        self._server.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        with suppress(OSError):
            to_server, from_us = await asyncio.open_connection("127.0.0.1", self._upstream_port)
            both = {writer, from_us}
            self._writers |= both
            self._clients.add(writer)
            await asyncio.gather(self._pump(reader, from_us), self._pump(to_server, writer))
            self._writers -= both
            self._clients.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()


@dataclass
class FaultyCollector:
    """Collector that stores spans, with configurable faults.

    Attributes:
        faults: faults of the next requests, one for each.
        always: fault of every request without another; None accepts it.
        poison: ids of spans that cause `poison_fault`.
        max_spans: requests with more spans are `TOO_LARGE`.
        spans: stored spans in order, including duplicates.
        requests: spans of each request, whatever its answer.
        headers: headers of the newest request, in lower case.
    """

    protocol: OtlpProtocol
    faults: deque[Fault] = field(default_factory=deque)
    always: Fault | None = None
    poison: set[bytes] = field(default_factory=set)
    poison_fault: Fault = REFUSED
    max_spans: int = 1_000_000
    spans: list[Span] = field(default_factory=list)
    requests: list[list[Span]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    path: str = ""
    endpoint: str = ""

    def settings(self, **others: object) -> OtlpSettings:
        return OtlpSettings(endpoint=self.endpoint, protocol=self.protocol, **others)

    def refuse_connections(self, refusing: bool) -> None:
        self._relay.refusing = refusing
        if refusing:
            self._relay.cut()

    @asynccontextmanager
    async def running(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        credentials: grpc.ServerCredentials | None = None,
    ) -> AsyncIterator["FaultyCollector"]:
        secure = tls is not None or credentials is not None
        scheme = "https://localhost" if secure else "http://127.0.0.1"
        serve = self._grpc(credentials) if self.protocol == "grpc" else self._http(tls)
        async with serve as port:
            self._relay = Relay(port)
            self.endpoint = f"{scheme}:{await self._relay.start()}"
            if self.protocol != "grpc":
                self.endpoint = append_signal_path(self.endpoint, "traces")
            try:
                yield self
            finally:
                await self._relay.close()

    @asynccontextmanager
    async def _grpc(self, credentials: grpc.ServerCredentials | None) -> AsyncIterator[int]:
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(self._answer_grpc)
        service, method = EXPORT_METHOD.strip("/").split("/")
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)

    @asynccontextmanager
    async def _http(self, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._answer_http)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        try:
            yield runner.addresses[0][1]
        finally:
            await runner.cleanup()

    async def _meet(self, request: bytes) -> Fault | None:
        """Store the spans that the fault lets through, and return the fault."""
        spans = spans_in(request)
        self.requests.append(spans)
        if len(spans) > self.max_spans:
            fault: Fault | None = TOO_LARGE
        elif any(span.span_id in self.poison for span in spans):
            fault = self.poison_fault
        else:
            fault = self.faults.popleft() if self.faults else self.always
        match fault:
            case Slow(delay_s=delay_s, stored=stored):
                await asyncio.sleep(delay_s)
                self.spans += spans if stored else []
            case Partial(num_rejected=num_rejected):
                self.spans += spans[num_rejected:]
            case Cut(stored=stored):
                self.spans += spans if stored else []
                self._relay.cut()
            case Noise():
                self._relay.make_noise()
            case None:
                self.spans += spans
        return fault

    async def _answer_grpc(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self.headers = {key: str(value) for key, value in context.invocation_metadata()}
        match await self._meet(request):
            case Answer() as told:
                await context.abort(told.grpc_code, told.message, _retry_info(told))
            case Garbage(body=body):
                return body
            case Partial() as partial:
                return partial_success(partial)
        return b""

    async def _answer_http(self, request: web.Request) -> web.Response:
        self.headers = {key.lower(): value for key, value in request.headers.items()}
        self.path = request.path
        body = await request.read()
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        match await self._meet(body):
            case Answer() as told:
                status = Status(message=told.message).SerializeToString()
                headers = PROTOBUF | _retry_after(told)
                return web.Response(status=told.http_status, body=status, headers=headers)
            case Garbage(body=body, content_type=content_type):
                return web.Response(body=body, headers={"content-type": content_type})
            case Partial() as partial:
                return web.Response(body=partial_success(partial), headers=PROTOBUF)
        return web.Response(body=b"", headers=PROTOBUF)


def spans_in(request: bytes) -> list[Span]:
    return [
        span
        for resource_spans in ExportTraceServiceRequest.FromString(request).resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def partial_success(told: Partial) -> bytes:
    partial = ExportTracePartialSuccess(
        rejected_spans=told.num_rejected, error_message=told.message
    )
    return ExportTraceServiceResponse(partial_success=partial).SerializeToString()


def _retry_info(told: Answer) -> tuple[tuple[str, bytes], ...]:
    if told.retry_delay_s is None:
        return ()
    info, detail = RetryInfo(), Any()
    info.retry_delay.FromNanoseconds(round(told.retry_delay_s * 1e9))
    detail.Pack(info)
    status = Status(code=told.grpc_code.value[0], message=told.message, details=[detail])
    return (("grpc-status-details-bin", status.SerializeToString()),)


def _retry_after(told: Answer) -> dict[str, str]:
    if told.retry_delay_s is None:
        return {}
    if told.as_date:
        return {
            "retry-after": email.utils.formatdate(time.time() + told.retry_delay_s, usegmt=True)
        }
    return {"retry-after": f"{told.retry_delay_s:g}"}
