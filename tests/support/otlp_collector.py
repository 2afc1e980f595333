"""A collector that keeps everything that OTLP sends over gRPC: spans, log records and metrics."""

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collected(
    trace_service_pb2_grpc.TraceServiceServicer,
    logs_service_pb2_grpc.LogsServiceServicer,
    metrics_service_pb2_grpc.MetricsServiceServicer,
):
    """Everything that was sent, in order.

    Attributes:
        traces: requests with spans.
        logs: requests with log records.
        pushes: requests with metrics.
    """

    def __init__(self) -> None:
        self.traces: list[trace_service_pb2.ExportTraceServiceRequest] = []
        self.logs: list[logs_service_pb2.ExportLogsServiceRequest] = []
        self.pushes: list[metrics_service_pb2.ExportMetricsServiceRequest] = []

    def Export(self, request, context):  # noqa: N802 - the services' own name
        """Keep a request of any of the three services."""
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            self.traces.append(request)
            return trace_service_pb2.ExportTraceServiceResponse()
        if isinstance(request, logs_service_pb2.ExportLogsServiceRequest):
            self.logs.append(request)
            return logs_service_pb2.ExportLogsServiceResponse()
        self.pushes.append(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def records(self) -> list[LogRecord]:
        return [
            record
            for request in self.logs
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    @property
    def metrics(self) -> list[Metric]:
        return [
            metric
            for request in self.pushes
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    @property
    def resources(self) -> list[Resource]:
        """Return the resource of every request."""
        return [
            *(it.resource for request in self.traces for it in request.resource_spans),
            *(it.resource for request in self.logs for it in request.resource_logs),
            *(it.resource for request in self.pushes for it in request.resource_metrics),
        ]


@contextmanager
def collecting() -> Iterator[tuple[Collected, str]]:
    """Run a collector; yield what it has, and its URL."""
    collected, server = Collected(), grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collected, server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(collected, server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collected, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collected, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)
