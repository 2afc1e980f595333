"""Values of the metrics' attributes, each from a small fixed set."""

import re

from whence.v1 import generation_pb2, model_pb2, record_pb2, trace_pb2
from whence.v1.generation_pb2 import FinishReason, GenerationFinished, GenerationStarted
from whence_server.domain.http_routes import RECORDED
from whence_server.telemetry.grpc_status import get_status_name
from whence_server.telemetry.spans.finish_reasons import get_reason_name

OTHER = "_OTHER"
"""The conventions' value for everything without a name of its own."""

_METHODS = frozenset(
    f"{service.full_name}/{method.name}"
    for module in (generation_pb2, model_pb2, record_pb2, trace_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
_HTTP_METHODS = frozenset({"GET", "POST"})
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def get_operation(started: GenerationStarted) -> str:
    """Return the GenAI operation, with the name that spans use."""
    return started.operation or "text_completion"


def get_method(name: str) -> str:
    """Return the name of a method of whence, and OTHER for any other name."""
    return name if name in _METHODS else OTHER


def get_http_method(name: str) -> str:
    """Return the request method of a recorded HTTP request, and OTHER for any other name."""
    return name if name in _HTTP_METHODS else OTHER


def get_route(route: str) -> str:
    """Return a route of recorded HTTP requests, and OTHER for any other text."""
    return route if route in RECORDED else OTHER


def get_status(code: int) -> str:
    """Return a gRPC status code's name, and OTHER for an unknown number."""
    return get_status_name(code) or OTHER


def get_finish_reason(reason: FinishReason.ValueType) -> str:
    """Return a FinishReason in lower case without its prefix, and OTHER for an unknown number."""
    return get_reason_name(reason) if reason in FinishReason.values() else OTHER


def get_error_type(finished: GenerationFinished) -> str | None:
    """Return the reason of a generation's failure; None if it did not fail."""
    if finished.finish_reason != FinishReason.FINISH_REASON_FAILED:
        return None
    reason = finished.failure.reason
    return reason if _REASON.fullmatch(reason) else OTHER
