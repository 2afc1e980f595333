"""The SDK's own OTLP exporters for metrics, told all that the settings know.

What is not set they look up in OpenTelemetry's variables, from which the settings come.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import grpc
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter

from whence_server.domain.otlp import OtlpProtocol, OtlpSettings, parse_grpc_target
from whence_server.telemetry.export.otlp_grpc import grpc_metadata
from whence_server.telemetry.export.tls import channel_credentials, ssl_context

_NO_LIMIT_S = 3_600.0


def otlp_exporter(
    settings: OtlpSettings, temporality: Mapping[type, AggregationTemporality]
) -> MetricExporter:
    """Make the exporter for a destination.

    Args:
        settings: where to.
        temporality: that of the reader.

    Raises:
        ConfigurationError: a PEM file holds something else.
    """
    if settings.protocol is OtlpProtocol.GRPC:
        return _over_grpc(settings, dict(temporality))
    return _over_http(settings, dict(temporality))


def _over_grpc(
    settings: OtlpSettings, temporality: dict[type, AggregationTemporality]
) -> MetricExporter:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    target, secure = parse_grpc_target(settings.endpoint, insecure=settings.insecure)
    return OTLPMetricExporter(
        endpoint=target,
        insecure=not secure,
        credentials=channel_credentials(settings) if secure else None,
        # Its annotation forgets the binary ones.
        headers=cast("dict[str, str]", grpc_metadata(settings.headers)),
        timeout=settings.timeout_s or _NO_LIMIT_S,
        compression=grpc.Compression.Gzip if settings.gzip else grpc.Compression.NoCompression,
        preferred_temporality=temporality,
    )


def _over_http(
    settings: OtlpSettings, temporality: dict[type, AggregationTemporality]
) -> MetricExporter:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    if settings.endpoint.startswith("https:"):
        ssl_context(settings)  # the exporter would take nonsense, and fail at every push
    return OTLPMetricExporter(
        endpoint=settings.endpoint,
        headers=dict(settings.headers),
        timeout=settings.timeout_s or _NO_LIMIT_S,
        compression=Compression.Gzip if settings.gzip else Compression.NoCompression,
        certificate_file=_text(settings.certificate),
        client_key_file=_text(settings.client_key),
        client_certificate_file=_text(settings.client_certificate),
        preferred_temporality=temporality,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
