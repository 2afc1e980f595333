"""Why a generation ended, in whence's words and in the GenAI conventions'."""

from whence.v1.generation_pb2 import FinishReason

_CONVENTIONAL = {
    FinishReason.FINISH_REASON_END_OF_SEQUENCE: "stop",
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
    FinishReason.FINISH_REASON_FAILED: "error",
}


def reason_name(reason: FinishReason.ValueType) -> str:
    """In whence's own words: "end_of_sequence", "cancelled", ..."""
    if reason not in FinishReason.values():
        return str(reason)  # a reason that a newer server wrote
    return FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()


def finish_reason(reason: FinishReason.ValueType) -> str:
    """The conventions' word where they have one, else whence's."""
    return _CONVENTIONAL.get(reason, reason_name(reason))
