"""A small OTLP/gRPC collector in memory, for the demo, tests and benchmarks.

Its answers can be scripted, to test exporters.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from google.protobuf.any_pb2 import Any
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence_server.telemetry.export.otlp_grpc import EXPORT_METHOD


@dataclass(frozen=True, slots=True)
class Wait:
    """Answer that accepts the spans after a delay, in seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Fail:
    """Answer with an error status; no span is accepted."""

    code: grpc.StatusCode
    retry_delay_s: float | None = None
    """Delay in the error's RetryInfo, in seconds; None sends no RetryInfo."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer with a partial success: the first `num_spans` spans are rejected."""

    num_spans: int
    message: str = "rejected"


@dataclass(frozen=True, slots=True)
class Drop:
    """Answer that accepts the spans and drops the connection without a response."""


Answer: TypeAlias = Wait | Fail | Reject | Drop
_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, ExportTraceServiceResponse]"


class Receiver:
    """Collector that counts spans and, optionally, keeps them.

    The port is reserved when the object is created; it refuses connections before `start` and after
    `stop`.

    Attributes:
        spans: every span that was accepted, in order, duplicates included.
        requests: the bytes of every request, whatever its answer.
        num_spans: number of accepted spans.
        answers: answers to the next requests, in order; later requests are accepted.
        is_poison: predicate; a request with a span for which it is true gets INVALID_ARGUMENT.
    """

    def __init__(self, *, keep: bool = True) -> None:
        self.spans: list[Span] = []
        self.requests: list[bytes] = []
        self.num_spans = 0
        self.answers: deque[Answer] = deque()
        self.is_poison: Callable[[Span], bool] | None = None
        self._keep = keep
        self._received = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        # Bound and not listening: no other process gets the port, and connections are refused.
        self._reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self._port: int = self._reservation.getsockname()[1]

    @property
    def endpoint(self) -> str:
        """URL to send spans to."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Begin to listen."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
        handler: grpc.RpcMethodHandler[bytes, ExportTraceServiceResponse]
        handler = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=None,
            response_serializer=ExportTraceServiceResponse.SerializeToString,
        )
        service, method = EXPORT_METHOD.strip("/").split("/")
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        self._server.add_insecure_port(f"127.0.0.1:{self._port}")
        await self._server.start()

    async def stop(self) -> None:
        """Drop all connections, and refuse new ones until `start`."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace=None)

    async def close(self) -> None:
        """Stop, and release the port."""
        await self.stop()
        self._reservation.close()

    async def wait_for(self, num_spans: int) -> None:
        """Wait until `num_spans` spans were accepted, duplicates included."""
        async with self._received:
            await self._received.wait_for(lambda: self.num_spans >= num_spans)

    async def _export(self, request: bytes, context: _Context) -> ExportTraceServiceResponse:
        spans = _parse_spans(request)
        if self._keep:
            self.requests.append(request)
        if self.is_poison is not None and any(map(self.is_poison, spans)):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a span is invalid")
        match self.answers.popleft() if self.answers else None:
            case Wait(delay_s=delay_s):
                await asyncio.sleep(delay_s)
            case Fail() as fail:
                await _abort(context, fail)
            case Reject(num_spans=num_rejected, message=message):
                await self._accept(spans[num_rejected:])
                partial = ExportTracePartialSuccess(
                    rejected_spans=num_rejected, error_message=message
                )
                return ExportTraceServiceResponse(partial_success=partial)
            case Drop():
                await self._accept(spans)
                await self._drop_connection()
        await self._accept(spans)
        return ExportTraceServiceResponse()

    async def _accept(self, spans: list[Span]) -> None:
        async with self._received:
            self.num_spans += len(spans)
            if self._keep:
                self.spans += spans
            self._received.notify_all()

    async def _drop_connection(self) -> None:
        """Restart the server during its own call, which never answers."""
        stopping = asyncio.create_task(self._restart())
        await asyncio.shield(stopping)
        await asyncio.Event().wait()

    async def _restart(self) -> None:
        await self.stop()
        await self.start()


def _parse_spans(request: bytes) -> list[Span]:
    message = ExportTraceServiceRequest.FromString(request)
    return [
        span
        for resource_spans in message.resource_spans
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


async def _abort(context: _Context, fail: Fail) -> None:
    trailing: tuple[tuple[str, bytes], ...] = ()
    if fail.retry_delay_s is not None:
        info = RetryInfo()
        info.retry_delay.FromNanoseconds(round(fail.retry_delay_s * 1e9))
        detail = Any()
        detail.Pack(info)
        status = Status(code=fail.code.value[0], message="as told", details=[detail])
        trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(fail.code, "as told", trailing)
