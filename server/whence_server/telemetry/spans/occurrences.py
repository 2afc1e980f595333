"""Events of the GenAI span that show a generation's occurrences."""

from collections import OrderedDict
from collections.abc import Iterable

from google.protobuf.message import DecodeError
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.v1.occurrence_pb2 import Caller, GenerationCancelled, Occurrence
from whence_server.domain.entries import Entry, EntryKind
from whence_server.telemetry.grpc_status import get_status_name
from whence_server.telemetry.journal import GenerationReader
from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes
from whence_server.telemetry.spans import names

_OCCURRENCES = frozenset({EntryKind.OCCURRENCE})
_MAX_GENERATIONS = 4_096
_MAX_READ = 1_000
"""More than the server records of one generation."""

_EVENT_NAMES = {
    "reader_left": names.READER_LEFT,
    "reader_joined": names.READER_JOINED,
    "engine_ended": names.ENGINE_ENDED,
    "engine_resumed": names.ENGINE_RESUMED,
    "cancelled": names.CANCELLED,
    "max_duration_passed": names.MAX_DURATION_PASSED,
}


class Occurrences:
    """Reader of occurrences, which looks into the journal only where there can be some.

    Args:
        journal: the journal to read.
    """

    def __init__(self, journal: GenerationReader) -> None:
        self._journal = journal
        self._without: OrderedDict[str, None] = OrderedDict()
        """Generations whose start was seen, and no occurrence since."""

    def begin(self, generation_id: str) -> None:
        """Note a generation's start."""
        self._without[generation_id] = None
        if len(self._without) > _MAX_GENERATIONS:
            self._without.popitem(last=False)

    def note(self, generation_id: str) -> None:
        """Note an occurrence, or the deletion of the generation."""
        self._without.pop(generation_id, None)

    async def read(self, finished: Entry) -> list[Occurrence]:
        """Read a generation's occurrences before its FINISHED entry, as `read_occurrences` does."""
        if finished.generation_id in self._without:
            return []
        return await read_occurrences(self._journal, finished)


async def read_occurrences(journal: GenerationReader, finished: Entry) -> list[Occurrence]:
    """Read a generation's occurrences before its FINISHED entry, in order, without unreadable ones.

    Raises:
        GenerationNotFoundError: the generation was deleted.
    """
    entries = await journal.read(finished.generation_id, 0, _MAX_READ, _OCCURRENCES)
    return list(_parse(entry for entry in entries if entry.position < finished.position))


def _parse(entries: Iterable[Entry]) -> Iterable[Occurrence]:
    for entry in entries:
        try:
            yield Occurrence.FromString(entry.payload)
        except DecodeError:
            continue


def make_occurrence_event(occurrence: Occurrence) -> Span.Event | None:
    """Make the event of one occurrence; None if it has a span, or if a later version wrote it."""
    kind = occurrence.WhichOneof("occurrence")
    if kind not in _EVENT_NAMES:
        return None
    return Span.Event(
        time_unix_nano=max(occurrence.time.ToNanoseconds(), 0),
        name=_EVENT_NAMES[kind],
        attributes=encode_attributes(
            _make_attributes(occurrence) | {names.GENERATION_NUM_STEPS: occurrence.num_steps}
        ),
    )


def _make_attributes(occurrence: Occurrence) -> dict[str, AttributeValue | None]:
    left, joined = occurrence.reader_left, occurrence.reader_joined
    match occurrence.WhichOneof("occurrence"):
        case "reader_left":
            status = get_status_name(left.status_code) or str(left.status_code)
            return _make_caller_attributes(left.caller) | {
                names.RPC_RESPONSE_STATUS_CODE: status,
                names.READER_LAST_OFFSET: left.last_offset,
                names.READER_COUNT: left.num_readers,
            }
        case "reader_joined":
            return _make_caller_attributes(joined.caller) | {
                names.READER_AFTER_OFFSET: joined.after_offset,
                names.READER_COUNT: joined.num_readers,
            }
        case "engine_ended":
            return {names.ENGINE_END: occurrence.engine_ended.detail}
        case "cancelled":
            return _make_cancel_attributes(occurrence.cancelled)
        case "max_duration_passed":
            max_duration = occurrence.max_duration_passed.max_duration
            return {names.GENERATION_MAX_DURATION_NS: max_duration.ToNanoseconds()}
        case _:
            return {}


def _make_cancel_attributes(
    cancelled: GenerationCancelled,
) -> dict[str, AttributeValue | None]:
    if cancelled.HasField("caller"):
        return {names.CANCEL_CAUSE: "call"} | _make_caller_attributes(cancelled.caller)
    return {
        names.CANCEL_CAUSE: "no_reader",
        names.CANCEL_WITHOUT_READER_NS: cancelled.without_reader.ToNanoseconds(),
    }


def _make_caller_attributes(caller: Caller) -> dict[str, AttributeValue | None]:
    return {
        names.RPC_METHOD: caller.method,
        names.CLIENT_ADDRESS: caller.address,
        names.CLIENT_PORT: caller.port if caller.HasField("port") else None,
        names.CALLER_TRACE_ID: caller.trace_id,
        names.CALLER_SPAN_ID: caller.span_id,
        names.CALLER_PARENT_SPAN_ID: caller.parent_span_id or None,
    }
