"""OTLP over gRPC: sends a request, and says what its answer means."""

from collections.abc import Mapping

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpSettings, parse_grpc_target
from whence_server.domain.otlp_text import BINARY_SUFFIX, decode_binary_value
from whence_server.telemetry.export.outcomes import (
    Accepted,
    Failed,
    Misconfigured,
    Outcome,
    Refused,
    TooLarge,
    TryAgain,
)
from whence_server.telemetry.export.tls import channel_credentials

EXPORT_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
EXPORT_LOGS_METHOD = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"

RETRYABLE = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""OTLP's table; RESOURCE_EXHAUSTED joins it where the answer says when to come again."""
MISCONFIGURED = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""These speak of who sends and where to, not of the spans, which are kept until it is mended."""
FAILED = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
"""A collector's own trouble, more often than the spans' fault."""

_CHANNEL_OPTIONS = [
    # gRPC's own reconnection would otherwise stay away for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


class OtlpGrpcSink:
    """Sends spans, or log records, to an OTLP/gRPC endpoint; made within a running event loop.

    Args:
        settings: where to, and how.
        method: which of the collector's services takes them; their requests and answers have
            the same form on the wire.

    Raises:
        ConfigurationError: the endpoint is not one, or a PEM file holds something else.
    """

    def __init__(self, settings: OtlpSettings, method: str = EXPORT_METHOD) -> None:
        try:
            target, secure = parse_grpc_target(settings.endpoint, insecure=settings.insecure)
        except ValueError as error:
            raise ConfigurationError(f"OTLP endpoint {settings.endpoint!r}: {error}") from None
        self._metadata = tuple(grpc_metadata(settings.headers).items())
        self._timeout_s = settings.timeout_s
        compression = grpc.Compression.Gzip if settings.gzip else grpc.Compression.NoCompression
        if secure:
            self._channel = grpc.aio.secure_channel(
                target,
                channel_credentials(settings),
                options=_CHANNEL_OPTIONS,
                compression=compression,
            )
        else:
            self._channel = grpc.aio.insecure_channel(
                target, options=_CHANNEL_OPTIONS, compression=compression
            )
        # The stub's own method on bare bytes: the request is serialised already, and an answer
        # that is none must not pass for one.
        self._export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            method, request_serializer=None, response_deserializer=None
        )

    async def export(self, request: bytes) -> Outcome:
        """Send one serialised ExportTraceServiceRequest."""
        try:
            answer = await self._export(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return _outcome_of(error)
        try:
            partial = ExportTraceServiceResponse.FromString(answer).partial_success
        except DecodeError as error:
            return Failed(f"OK, with {len(answer)} bytes that are no OTLP answer: {error}")
        return Accepted(partial.rejected_spans, partial.error_message)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def grpc_metadata(headers: Mapping[str, str]) -> dict[str, str | bytes]:
    """Return headers as gRPC takes them: those whose names end in "-bin" as bytes."""
    return {
        name: decode_binary_value(value) if name.endswith(BINARY_SUFFIX) else value
        for name, value in headers.items()
    }


def _outcome_of(error: grpc.aio.AioRpcError) -> Outcome:
    code, details = error.code(), error.details() or ""
    reason = f"{code.name}: {details}"
    delay_s = _retry_delay_s(error)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if delay_s is not None:
            return TryAgain(reason, delay_s)
        # gRPC's own words for a message beyond the receiver's limit.
        return TooLarge(reason, certain="larger than max" in details)
    if code in RETRYABLE:
        return TryAgain(reason, delay_s)
    if code in MISCONFIGURED:
        return Misconfigured(reason)
    if code in FAILED:
        return Failed(reason, delay_s)
    return Refused(reason)


def _retry_delay_s(error: grpc.aio.AioRpcError) -> float | None:
    """Read google.rpc.RetryInfo from the status details; None where there is none."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        try:
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return float(info.retry_delay.ToNanoseconds()) / 1e9
        except (DecodeError, ValueError):
            return None
    return None
