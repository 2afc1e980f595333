"""The `gen_ai.client.inference.operation.details` event: a generation's content, as a log record.

The conventions make it a log record, and not an event of the span.
"""

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_DEBUG, LogRecord, ScopeLogs

from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import GenerationNotFoundError, RecordDamagedError
from whence_server.domain.telemetry import ContentCapture
from whence_server.telemetry.journal import GenerationReader, UnreadableEntryError
from whence_server.telemetry.otlp.attributes import key_values
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.bounds import sequence_bounds
from whence_server.telemetry.spans.content import Message, input_messages, output_messages
from whence_server.telemetry.spans.encoder import read_started
from whence_server.telemetry.spans.genai import generation_attributes
from whence_server.telemetry.spans.origin import read_origin


class EventEncoder:
    """Makes the events of journal entries, where the operator wants content in them.

    Whether spans are wanted of a generation says nothing about its event: that may stand alone.

    Args:
        journal: read for the start of generations, and the first step of each sequence.
        content: where prompts and outputs go.
    """

    def __init__(self, journal: GenerationReader, content: ContentCapture) -> None:
        self._journal = journal
        self._content = content

    async def encode(self, entry: Entry) -> list[bytes]:
        """Encode an entry's events, each as a ScopeLogs message that holds it alone.

        Raises:
            UnreadableEntryError: the payload cannot be understood.
        """
        if not self._content.on_events or entry.kind is not EntryKind.FINISHED:
            return []
        if not entry.payload:
            return []
        try:
            started = await read_started(self._journal, entry.generation_id)
            if started is None:
                return []
            record = await self._record(entry, started)
        except GenerationNotFoundError:  # deleted since the entry was read
            return []
        except (DecodeError, ValueError, RecordDamagedError) as error:
            raise UnreadableEntryError(
                f"entry {entry.position} (generation {entry.generation_id!r}, "
                f"{entry.kind.name}) makes no event: {error}"
            ) from error
        return [ScopeLogs(log_records=[record]).SerializeToString()]

    def describe(self, piece: bytes) -> str:
        """Return an event's name and trace, from the ScopeLogs message that holds it alone."""
        record = ScopeLogs.FromString(piece).log_records[0]
        return f"event {record.event_name} of trace {record.trace_id.hex()}"

    async def _record(self, entry: Entry, started: GenerationStarted) -> LogRecord:
        finished = GenerationFinished.FromString(entry.payload)
        origin = read_origin(started)
        bounds = await sequence_bounds(
            self._journal, entry.generation_id, entry.offset, range(origin.num_sequences)
        )
        end = max(finished.end_time.ToNanoseconds(), origin.start_time_ns)
        return LogRecord(
            time_unix_nano=end,
            observed_time_unix_nano=end,
            severity_number=SEVERITY_NUMBER_DEBUG,
            event_name=names.OPERATION_DETAILS,
            attributes=[
                *key_values(generation_attributes(started, finished, bounds)),
                *_messages(names.GEN_AI_INPUT_MESSAGES, input_messages(started)),
                *_messages(names.GEN_AI_OUTPUT_MESSAGES, output_messages(finished)),
            ],
            flags=origin.trace_flags,
            trace_id=origin.trace_id,
            span_id=origin.ids.generation(),
        )


def _messages(key: str, messages: list[Message]) -> list[KeyValue]:
    """Messages as an event's attribute, in structured form; nothing where there are none."""
    if not messages:
        return []
    return [KeyValue(key=key, value=_structured(messages))]


def _structured(value: str | list[Message] | Message) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, dict):
        pairs = [KeyValue(key=key, value=_structured(item)) for key, item in value.items()]
        return AnyValue(kvlist_value=KeyValueList(values=pairs))
    return AnyValue(array_value=ArrayValue(values=[_structured(item) for item in value]))
