"""Lines about a generation's occurrences, for `whence generations show`."""

from collections.abc import Iterator

import grpc

from whence.summary.explanations import describe_span, describe_trust
from whence.v1.generation_pb2 import GenerationStarted
from whence.v1.occurrence_pb2 import (
    Caller,
    GenerationCancelled,
    GenerationExplained,
    MaxDurationPassed,
    Occurrence,
)

_STATUS_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}


def list_occurrences(
    started: GenerationStarted, occurrences: list[Occurrence]
) -> Iterator[tuple[str, str]]:
    """Yield the time since the request's arrival, and a description, of each occurrence."""
    for occurrence in occurrences:
        elapsed_ns = occurrence.time.ToNanoseconds() - started.start_time.ToNanoseconds()
        steps = "step" if occurrence.num_steps == 1 else "steps"
        yield (
            f"at {elapsed_ns / 1e9:.3f} s",
            f"{_describe(occurrence)}; {occurrence.num_steps} {steps} recorded",
        )


def _describe(occurrence: Occurrence) -> str:
    match occurrence.WhichOneof("occurrence"):
        case "reader_left" | "reader_joined":
            told = _describe_reader(occurrence)
        case "engine_ended":
            told = occurrence.engine_ended.detail
        case "engine_resumed":
            told = "a new engine process continued it"
        case "cancelled":
            told = _describe_cancel(occurrence.cancelled)
        case "max_duration_passed":
            told = _describe_passed(occurrence.max_duration_passed)
        case "explained":
            told = _describe_explained(occurrence.explained)
        case _:
            told = "an occurrence that this version of whence does not know"
    return told


def _describe_reader(occurrence: Occurrence) -> str:
    if occurrence.HasField("reader_joined"):
        joined = occurrence.reader_joined
        return f"{_name_call(joined.caller)} began to read after offset {joined.after_offset}"
    left = occurrence.reader_left
    status = _STATUS_NAMES.get(left.status_code, str(left.status_code))
    return (
        f"{_name_call(left.caller)} ended with {status} after offset {left.last_offset}; "
        f"calls that still read it: {left.num_readers}"
    )


def _describe_cancel(cancelled: GenerationCancelled) -> str:
    if cancelled.HasField("caller"):
        return f"cancelled by {_name_call(cancelled.caller)}"
    seconds = cancelled.without_reader.ToNanoseconds() / 1e9
    return f"cancelled, because no call had read it for {seconds:g} s"


def _describe_passed(passed: MaxDurationPassed) -> str:
    return f"its max_duration of {passed.max_duration.ToNanoseconds() / 1e9:g} s had passed"


def _describe_explained(explained: GenerationExplained) -> str:
    found = explained.explanation
    return (
        f"{_name_call(explained.caller)} explained {describe_span(found.span)}; "
        f"trust: {describe_trust(found)}"
    )


def _name_call(caller: Caller) -> str:
    method = caller.method.rpartition("/")[2]
    if caller.HasField("port"):
        host = f"[{caller.address}]" if ":" in caller.address else caller.address
        return f"{method} from {host}:{caller.port}"
    return f"{method} from {caller.address}"
