"""OTLP over gRPC: sends requests, and classifies the answers."""

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
from whence_server.telemetry.export.tls import make_channel_credentials

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
"""Retryable codes of OTLP's table; RESOURCE_EXHAUSTED is one if the answer has a delay."""
MISCONFIGURED = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""Codes that concern the sender and the endpoint, not the spans, which are held meanwhile."""
FAILED = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
"""Codes of a collector's own errors, which are seldom caused by the spans."""

_CHANNEL_OPTIONS = [
    # By default gRPC waits for up to two minutes before it connects again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


class OtlpGrpcSink:
    """Sink that sends spans or log records to an OTLP/gRPC endpoint; made in a running event loop.

    Args:
        settings: the destination.
        method: method of the collector that accepts them; the requests and answers of traces and
            logs have the same form on the wire.

    Raises:
        ConfigurationError: the endpoint is invalid, or a PEM file does not hold what it should.
    """

    def __init__(self, settings: OtlpSettings, method: str = EXPORT_METHOD) -> None:
        try:
            target, secure = parse_grpc_target(settings.endpoint, insecure=settings.insecure)
        except ValueError as error:
            raise ConfigurationError(f"OTLP endpoint {settings.endpoint!r}: {error}") from None
        self._metadata = tuple(encode_grpc_metadata(settings.headers).items())
        self._timeout_s = settings.timeout_s
        compression = grpc.Compression.Gzip if settings.gzip else grpc.Compression.NoCompression
        if secure:
            self._channel = grpc.aio.secure_channel(
                target,
                make_channel_credentials(settings),
                options=_CHANNEL_OPTIONS,
                compression=compression,
            )
        else:
            self._channel = grpc.aio.insecure_channel(
                target, options=_CHANNEL_OPTIONS, compression=compression
            )
        # Without the stub's serialisers: requests are bytes already, and an answer that is no
        # OTLP message must be recognised.
        self._export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            method, request_serializer=None, response_deserializer=None
        )

    async def export(self, request: bytes) -> Outcome:
        """Send one serialised ExportTraceServiceRequest."""
        try:
            answer = await self._export(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return _classify(error)
        try:
            partial = ExportTraceServiceResponse.FromString(answer).partial_success
        except DecodeError as error:
            return Failed(f"OK: the answer's {len(answer)} bytes are no OTLP answer: {error}")
        return Accepted(partial.rejected_spans, partial.error_message)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def encode_grpc_metadata(headers: Mapping[str, str]) -> dict[str, str | bytes]:
    """Return headers as gRPC metadata; values of names that end in "-bin" are bytes."""
    return {
        name: decode_binary_value(value) if name.endswith(BINARY_SUFFIX) else value
        for name, value in headers.items()
    }


def _classify(error: grpc.aio.AioRpcError) -> Outcome:
    code, details = error.code(), error.details() or ""
    reason = f"{code.name}: {details}"
    delay_s = _read_retry_delay_s(error)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if delay_s is not None:
            return TryAgain(reason, delay_s)
        # gRPC's message if a request exceeds the receiver's limit.
        return TooLarge(reason, certain="larger than max" in details)
    if code in RETRYABLE:
        return TryAgain(reason, delay_s)
    if code in MISCONFIGURED:
        return Misconfigured(reason)
    if code in FAILED:
        return Failed(reason, delay_s)
    return Refused(reason)


def _read_retry_delay_s(error: grpc.aio.AioRpcError) -> float | None:
    """Read the delay of google.rpc.RetryInfo from the status details; None if there is none."""
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
