"""A small OTLP/gRPC collector in memory, for the demo, tests and benchmarks.

It answers as it is told to, and so shows what an exporter is worth.
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
    """Takes the spans, after so long."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Fail:
    """Answers with this status, and takes nothing."""

    code: grpc.StatusCode
    retry_delay_s: float | None = None
    """Sent as RetryInfo."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Answers with a partial success: the first spans of the request are not taken."""

    num_spans: int
    message: str = "rejected"


@dataclass(frozen=True, slots=True)
class Drop:
    """Takes the spans, and breaks the connection off instead of answering."""


Answer: TypeAlias = Wait | Fail | Reject | Drop
_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, ExportTraceServiceResponse]"


class Receiver:
    """Receives spans, counts them and, if wished, keeps them.

    Its port is its own from the start, and refuses connections until `start`, and again
    after `stop`.

    Attributes:
        spans: every span that was taken, in order, duplicates included.
        requests: the bytes of every request that came, whatever it was answered.
        num_spans: how many spans were taken.
        answers: what the next requests get, first come first served; then all is taken.
        is_poison: requests with such a span are INVALID_ARGUMENT.
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
        # Bound and not listening: nobody else gets the port, and connections are refused.
        self._reservation = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self._port: int = self._reservation.getsockname()[1]

    @property
    def endpoint(self) -> str:
        """Where to send spans."""
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
        """Break off all connections, and listens no more until started again."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(grace=None)

    async def close(self) -> None:
        """Stop, and gives the port back."""
        await self.stop()
        self._reservation.close()

    async def wait_for(self, num_spans: int) -> None:
        """Return once so many spans were taken, duplicates included."""
        async with self._received:
            await self._received.wait_for(lambda: self.num_spans >= num_spans)

    async def _export(self, request: bytes, context: _Context) -> ExportTraceServiceResponse:
        spans = _spans_in(request)
        if self._keep:
            self.requests.append(request)
        if self.is_poison is not None and any(map(self.is_poison, spans)):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a span is not to my taste")
        match self.answers.popleft() if self.answers else None:
            case Wait(delay_s=delay_s):
                await asyncio.sleep(delay_s)
            case Fail() as fail:
                await _abort(context, fail)
            case Reject(num_spans=num_rejected, message=message):
                await self._take(spans[num_rejected:])
                partial = ExportTracePartialSuccess(
                    rejected_spans=num_rejected, error_message=message
                )
                return ExportTraceServiceResponse(partial_success=partial)
            case Drop():
                await self._take(spans)
                await self._break_off()
        await self._take(spans)
        return ExportTraceServiceResponse()

    async def _take(self, spans: list[Span]) -> None:
        async with self._received:
            self.num_spans += len(spans)
            if self._keep:
                self.spans += spans
            self._received.notify_all()

    async def _break_off(self) -> None:
        """Stop the server under its own call, which never gets to answer."""
        stopping = asyncio.create_task(self._restart())
        await asyncio.shield(stopping)
        await asyncio.Event().wait()

    async def _restart(self) -> None:
        await self.stop()
        await self.start()


def _spans_in(request: bytes) -> list[Span]:
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
