"""OTLP exporters of the OpenTelemetry SDK for metrics, made from the settings.

The exporters read unset options from OpenTelemetry's variables, as the settings do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import grpc
from opentelemetry.sdk.metrics.export import AggregationTemporality, MetricExporter

from whence_server.domain.otlp import OtlpProtocol, OtlpSettings, parse_grpc_target
from whence_server.telemetry.export.otlp_grpc import encode_grpc_metadata
from whence_server.telemetry.export.tls import make_channel_credentials, make_ssl_context

_NO_LIMIT_S = 3_600.0


def make_otlp_exporter(
    settings: OtlpSettings, temporality: Mapping[type, AggregationTemporality]
) -> MetricExporter:
    """Make the metric exporter of a destination.

    Args:
        settings: the destination.
        temporality: temporality of each class of instrument, equal to the reader's.

    Raises:
        ConfigurationError: a PEM file does not hold what it should.
    """
    if settings.protocol is OtlpProtocol.GRPC:
        return _make_grpc_exporter(settings, dict(temporality))
    return _make_http_exporter(settings, dict(temporality))


def _make_grpc_exporter(
    settings: OtlpSettings, temporality: dict[type, AggregationTemporality]
) -> MetricExporter:
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    target, secure = parse_grpc_target(settings.endpoint, insecure=settings.insecure)
    return OTLPMetricExporter(
        endpoint=target,
        insecure=not secure,
        credentials=make_channel_credentials(settings) if secure else None,
        # The annotation lacks binary values, which are accepted.
        headers=cast("dict[str, str]", encode_grpc_metadata(settings.headers)),
        timeout=settings.timeout_s or _NO_LIMIT_S,
        compression=grpc.Compression.Gzip if settings.gzip else grpc.Compression.NoCompression,
        preferred_temporality=temporality,
    )


def _make_http_exporter(
    settings: OtlpSettings, temporality: dict[type, AggregationTemporality]
) -> MetricExporter:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    if settings.endpoint.startswith("https:"):
        make_ssl_context(settings)  # checked here, because the exporter would fail at every push
    return OTLPMetricExporter(
        endpoint=settings.endpoint,
        headers=dict(settings.headers),
        timeout=settings.timeout_s or _NO_LIMIT_S,
        compression=Compression.Gzip if settings.gzip else Compression.NoCompression,
        certificate_file=_format_path(settings.certificate),
        client_key_file=_format_path(settings.client_key),
        client_certificate_file=_format_path(settings.client_certificate),
        preferred_temporality=temporality,
    )


def _format_path(path: Path | None) -> str | None:
    return None if path is None else str(path)
