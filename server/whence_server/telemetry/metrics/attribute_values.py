"""Journalled values in the words of the metrics' attributes: few, and known beforehand."""

import re

from whence.v1 import generation_pb2, model_pb2, trace_pb2
from whence.v1.generation_pb2 import FinishReason, GenerationFinished, GenerationStarted
from whence_server.telemetry.grpc_status import status_name
from whence_server.telemetry.spans.finish_reasons import reason_name

OTHER = "_OTHER"
"""The conventions' word for what has no name here."""

_METHODS = frozenset(
    f"{service.full_name}/{method.name}"
    for module in (generation_pb2, model_pb2, trace_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def operation(started: GenerationStarted) -> str:
    """The GenAI operation, as spans call it."""
    return started.operation or "text_completion"


def method(name: str) -> str:
    """A method of whence's own, or OTHER."""
    return name if name in _METHODS else OTHER


def status(code: int) -> str:
    """A gRPC status code's name, or OTHER."""
    return status_name(code) or OTHER


def finish_reason(reason: FinishReason.ValueType) -> str:
    """FinishReason in lower case, without its prefix; OTHER for one that a newer server wrote."""
    return reason_name(reason) if reason in FinishReason.values() else OTHER


def error_type(finished: GenerationFinished) -> str | None:
    """Why a generation failed; None where it did not."""
    if finished.finish_reason != FinishReason.FINISH_REASON_FAILED:
        return None
    reason = finished.failure.reason
    return reason if _REASON.fullmatch(reason) else OTHER
