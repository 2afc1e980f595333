"""OTLP over gRPC: sends a request, and says what its answer means."""

from collections.abc import Mapping
from urllib.parse import urlsplit

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from whence_server.domain.errors import ConfigurationError
from whence_server.telemetry.seams import Accepted, Misconfigured, Outcome, Refused, TryAgain

EXPORT_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
DEFAULT_PORT = 4317

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

_CHANNEL_OPTIONS = [
    # gRPC's own reconnection would otherwise stay away for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]


class OtlpGrpcSink:
    """Sends spans to an OTLP/gRPC endpoint; made within a running event loop.

    Args:
        endpoint: "http://host:port", "https://host:port" (TLS), "host:port" or "unix:PATH".
        headers: sent with every request, such as an API key.
        timeout_s: how long an answer may take.
        gzip: compresses requests.
        root_certificates: PEM, instead of the system's.

    Raises:
        ConfigurationError: the endpoint or a header is not one.
    """

    def __init__(
        self,
        endpoint: str,
        headers: Mapping[str, str] = {},
        *,
        timeout_s: float = 10.0,
        gzip: bool = False,
        root_certificates: bytes | None = None,
    ) -> None:
        target, secure = parse_endpoint(endpoint)
        self._metadata = tuple((key.lower(), value) for key, value in headers.items())
        self._timeout_s = timeout_s
        compression = grpc.Compression.Gzip if gzip else grpc.Compression.NoCompression
        if secure:
            credentials = grpc.ssl_channel_credentials(root_certificates)
            self._channel = grpc.aio.secure_channel(
                target, credentials, options=_CHANNEL_OPTIONS, compression=compression
            )
        else:
            self._channel = grpc.aio.insecure_channel(
                target, options=_CHANNEL_OPTIONS, compression=compression
            )
        # The stub's own method, but for the request, which is serialised already.
        self._export: grpc.aio.UnaryUnaryMultiCallable[
            bytes, trace_service_pb2.ExportTraceServiceResponse
        ] = self._channel.unary_unary(
            EXPORT_METHOD,
            request_serializer=None,
            response_deserializer=trace_service_pb2.ExportTraceServiceResponse.FromString,
        )

    async def export(self, request: bytes) -> Outcome:
        """Sends one serialised ExportTraceServiceRequest."""
        try:
            response = await self._export(request, timeout=self._timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            return _outcome_of(error)
        partial = response.partial_success
        return Accepted(partial.rejected_spans, partial.error_message)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


def parse_endpoint(endpoint: str) -> tuple[str, bool]:
    """Splits an endpoint into gRPC's target and whether to use TLS.

    Raises:
        ConfigurationError: it is no OTLP/gRPC endpoint.
    """
    if endpoint.startswith("unix:"):
        return endpoint, False
    try:
        url = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
        host, port = url.hostname, url.port or DEFAULT_PORT
    except ValueError as error:
        raise _not_an_endpoint(endpoint, str(error)) from error
    if url.scheme not in ("http", "https"):
        raise _not_an_endpoint(endpoint, f"scheme {url.scheme!r}")
    if not host:
        raise _not_an_endpoint(endpoint, "it names no host")
    if url.path.strip("/") or url.query or url.fragment or url.username is not None:
        raise _not_an_endpoint(endpoint, "OTLP/gRPC has nothing but a host and a port")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", url.scheme == "https"


def _not_an_endpoint(endpoint: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"OTLP endpoint {endpoint!r}: {why}; give http://HOST:PORT, https://HOST:PORT, "
        "HOST:PORT or unix:PATH"
    )


def _outcome_of(error: grpc.aio.AioRpcError) -> Outcome:
    code = error.code()
    reason = f"{code.name}: {error.details()}"
    delay_s = _retry_delay_s(error)
    if code in RETRYABLE:
        return TryAgain(reason, delay_s)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and delay_s is not None:
        return TryAgain(reason, delay_s)
    if code in MISCONFIGURED:
        return Misconfigured(reason)
    return Refused(reason)


def _retry_delay_s(error: grpc.aio.AioRpcError) -> float | None:
    """Reads google.rpc.RetryInfo from the status details; None where there is none."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        try:
            for detail in Status.FromString(value).details:
                info = RetryInfo()
                if detail.Unpack(info):
                    return float(info.retry_delay.ToNanoseconds()) / 1e9
        except DecodeError:
            return None
    return None
