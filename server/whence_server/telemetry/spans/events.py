"""`gen_ai.client.inference.operation.details` events: a generation's content as a log record.

The GenAI conventions define a log record, and not an event of the span.
"""

from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_DEBUG, LogRecord, ScopeLogs

from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import GenerationNotFoundError, RecordDamagedError
from whence_server.domain.telemetry import ContentCapture
from whence_server.telemetry.journal import GenerationReader, UnreadableEntryError
from whence_server.telemetry.otlp.attributes import encode_attributes
from whence_server.telemetry.otlp.json_values import make_json_value
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.bounds import read_sequence_bounds
from whence_server.telemetry.spans.content import (
    Message,
    keeps_text,
    make_input_messages,
    make_output_messages,
    make_tool_definitions,
)
from whence_server.telemetry.spans.genai import make_generation_attributes
from whence_server.telemetry.spans.origin import read_origin
from whence_server.telemetry.spans.origins import read_started


class EventEncoder:
    """Encoder of journal entries as log events, for operators who turn content capture on.

    Unsampled generations have events too.

    Args:
        journal: read for the start of generations, and the first step of each sequence.
        content: signals that carry prompts and outputs.
    """

    def __init__(self, journal: GenerationReader, content: ContentCapture) -> None:
        self._journal = journal
        self._content = content

    def expect(self, entries: Sequence[Entry]) -> None:
        """Ignore the entries that will be encoded next."""

    async def encode(self, entry: Entry) -> list[bytes]:
        """Encode an entry's events, each as a ScopeLogs message that holds it alone.

        Raises:
            UnreadableEntryError: the payload is not a message of the entry's kind.
        """
        if not self._content.on_events or entry.kind is not EntryKind.FINISHED:
            return []
        if not entry.payload:
            return []
        try:
            started = await read_started(self._journal, entry.generation_id)
            if started is None:
                return []
            record = await self._make_record(entry, started)
        except GenerationNotFoundError:  # deleted since the entry was read
            return []
        except (DecodeError, ValueError, RecordDamagedError) as error:
            raise UnreadableEntryError(
                f"entry {entry.position} (generation {entry.generation_id!r}, "
                f"{entry.kind.name}) cannot be made into an event: {error}"
            ) from error
        return [ScopeLogs(log_records=[record]).SerializeToString()]

    def describe(self, piece: bytes) -> str:
        """Return an event's name and trace, from the ScopeLogs message that holds it alone."""
        record = ScopeLogs.FromString(piece).log_records[0]
        return f"event {record.event_name} of trace {record.trace_id.hex()}"

    async def _make_record(self, entry: Entry, started: GenerationStarted) -> LogRecord:
        finished = GenerationFinished.FromString(entry.payload)
        origin = read_origin(started)
        bounds = await read_sequence_bounds(
            self._journal, entry.generation_id, entry.offset, range(origin.num_sequences)
        )
        end = max(finished.end_time.ToNanoseconds(), origin.start_time_ns)
        return LogRecord(
            time_unix_nano=end,
            observed_time_unix_nano=end,
            severity_number=SEVERITY_NUMBER_DEBUG,
            event_name=names.OPERATION_DETAILS,
            attributes=[
                *encode_attributes(make_generation_attributes(started, finished, bounds)),
                *_make_content(started, finished),
            ],
            flags=origin.trace_flags,
            trace_id=origin.trace_id,
            span_id=origin.ids.get_generation_id(),
        )


def _make_content(started: GenerationStarted, finished: GenerationFinished) -> Iterator[KeyValue]:
    """Yield the attributes with content; none if the content policy keeps no text."""
    if keeps_text(started):
        yield from _make_attribute(names.GEN_AI_INPUT_MESSAGES, make_input_messages(started))
        yield from _make_attribute(names.GEN_AI_OUTPUT_MESSAGES, make_output_messages(finished))
        yield from _make_attribute(names.GEN_AI_TOOL_DEFINITIONS, make_tool_definitions(started))


def _make_attribute(key: str, messages: list[Message]) -> list[KeyValue]:
    """Encode messages as a structured attribute of an event; no attribute if there are none."""
    if not messages:
        return []
    return [KeyValue(key=key, value=make_json_value(messages))]
