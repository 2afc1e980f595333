"""Where spans go, made from what the settings say; within a running event loop."""

from whence_server.domain.otlp import OtlpProtocol, OtlpSettings
from whence_server.telemetry.export.otlp_grpc import EXPORT_METHOD, OtlpGrpcSink
from whence_server.telemetry.export.outcomes import SpanSink
from whence_server.telemetry.export.plugged import PluggedSink, load_exporter


def make_sink(destination: OtlpSettings | str, method: str = EXPORT_METHOD) -> SpanSink:
    """Make the sink of a destination.

    Args:
        destination: OTLP's, or the name of an exporter that is not ours.
        method: which of a collector's services is called, over gRPC.

    Raises:
        ConfigurationError: the destination is none.
    """
    if isinstance(destination, str):
        return PluggedSink(load_exporter(destination), destination)
    if destination.protocol is OtlpProtocol.HTTP_PROTOBUF:
        from whence_server.telemetry.export.otlp_http import OtlpHttpSink  # its client loads slowly

        return OtlpHttpSink(destination)
    return OtlpGrpcSink(destination, method)
