"""Sinks, made from the settings in a running event loop."""

from whence_server.domain.otlp import OtlpProtocol, OtlpSettings
from whence_server.telemetry.export.otlp_grpc import EXPORT_METHOD, OtlpGrpcSink
from whence_server.telemetry.export.outcomes import SpanSink
from whence_server.telemetry.export.plugged import PluggedSink, load_exporter


def make_sink(destination: OtlpSettings | str, method: str = EXPORT_METHOD) -> SpanSink:
    """Make the sink of a destination.

    Args:
        destination: settings of an OTLP endpoint, or the name of a user's exporter.
        method: method of a collector to call over gRPC.

    Raises:
        ConfigurationError: the endpoint is invalid, or the exporter cannot be made.
    """
    if isinstance(destination, str):
        return PluggedSink(load_exporter(destination), destination)
    if destination.protocol is OtlpProtocol.HTTP_PROTOBUF:
        # Imported late, because aiohttp loads slowly.
        from whence_server.telemetry.export.otlp_http import OtlpHttpSink

        return OtlpHttpSink(destination)
    return OtlpGrpcSink(destination, method)
