"""Names of finish reasons: whence's own and those of the GenAI conventions."""

from whence.v1.generation_pb2 import FinishReason

_CONVENTIONAL = {
    FinishReason.FINISH_REASON_END_OF_SEQUENCE: "stop",
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
    FinishReason.FINISH_REASON_FAILED: "error",
}


def get_reason_name(reason: FinishReason.ValueType) -> str:
    """Return whence's own name of a finish reason: "end_of_sequence", "cancelled", ..."""
    if reason not in FinishReason.values():
        return str(reason)  # written by a newer server
    return FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def get_conventional_reason(reason: FinishReason.ValueType) -> str:
    """Return the conventions' name of a finish reason, or whence's own if they have none."""
    return _CONVENTIONAL.get(reason, get_reason_name(reason))
