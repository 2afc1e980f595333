"""Names of finish reasons: whence's own and those of the GenAI conventions."""

from whence.v1.generation_pb2 import FinishReason

STOP, TOOL_CALL = "stop", "tool_call"
"""The conventions' reasons of an output that ended by itself, without and with tool calls."""

_CONVENTIONAL = {
    FinishReason.FINISH_REASON_END_OF_SEQUENCE: STOP,
    FinishReason.FINISH_REASON_STOP: STOP,
    FinishReason.FINISH_REASON_LENGTH: "length",
    FinishReason.FINISH_REASON_FAILED: "error",
}


def get_reason_name(reason: FinishReason.ValueType) -> str:
    """Return whence's own name of a finish reason: "end_of_sequence", "cancelled", ..."""
    if reason not in FinishReason.values():
        return str(reason)  # written by a newer server
    return FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def get_conventional_reason(reason: FinishReason.ValueType, *, has_calls: bool = False) -> str:
    """Return the conventions' name of a finish reason, or whence's own if they have none.

    Args:
        reason: the reason.
        has_calls: True if the output has tool calls: ended by itself, it then awaits their results.
    """
    name = _CONVENTIONAL.get(reason, get_reason_name(reason))
    return TOOL_CALL if has_calls and name == STOP else name
