"""Encoding of occurrences as protobuf bytes, which the journal stores."""

from google.protobuf.duration_pb2 import Duration

from whence.v1 import occurrence_pb2
from whence_server.domain.occurrences import (
    Caller,
    CancelledByCall,
    CancelledWithoutReader,
    EngineEnded,
    EngineResumed,
    MaxDurationPassed,
    Occurrence,
    ReaderJoined,
    ReaderLeft,
)
from whence_server.journal.codec import make_timestamp


def encode_occurrence(occurrence: Occurrence) -> bytes:
    """Return a serialised whence.v1.Occurrence."""
    proto = occurrence_pb2.Occurrence(
        time=make_timestamp(occurrence.time_ns), num_steps=occurrence.num_steps
    )
    match occurrence.happening:
        case ReaderLeft(caller, last_offset, status, num_readers):
            proto.reader_left.caller.CopyFrom(convert_caller(caller))
            proto.reader_left.last_offset = last_offset
            proto.reader_left.status_code = status.value
            proto.reader_left.num_readers = num_readers
        case ReaderJoined(caller, after_offset, num_readers):
            proto.reader_joined.caller.CopyFrom(convert_caller(caller))
            proto.reader_joined.after_offset = after_offset
            proto.reader_joined.num_readers = num_readers
        case EngineEnded(detail):
            proto.engine_ended.detail = detail
        case EngineResumed():
            proto.engine_resumed.SetInParent()
        case CancelledByCall(caller):
            proto.cancelled.caller.CopyFrom(convert_caller(caller))
        case CancelledWithoutReader(seconds):
            proto.cancelled.without_reader.CopyFrom(_convert_seconds(seconds))
        case MaxDurationPassed(seconds):
            proto.max_duration_passed.max_duration.CopyFrom(_convert_seconds(seconds))
    return proto.SerializeToString()


def convert_caller(caller: Caller) -> occurrence_pb2.Caller:
    """Return a caller as a message."""
    context = caller.trace_context
    return occurrence_pb2.Caller(
        method=caller.method,
        trace_id=context.trace_id,
        span_id=context.span_id,
        parent_span_id=context.parent_span_id,
        address=caller.address,
        port=caller.port,
        identity=caller.identity,
    )


def _convert_seconds(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
