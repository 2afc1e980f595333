"""Events of the GenAI span, and the error attributes of the SERVER span."""

import pytest
from google.protobuf.duration_pb2 import Duration
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from span_reading import attributes, encoded, mapping, only_span, spans_of
from telemetry_journal import (
    START_NS,
    MemoryJournal,
    call,
    caller,
    finished,
    occurrence,
    started,
    step,
    timestamp,
)

from whence.v1 import call_pb2, generation_pb2
from whence.v1 import occurrence_pb2 as o
from whence_server.domain.entries import EntryKind
from whence_server.domain.telemetry import ContentCapture
from whence_server.telemetry.spans.encoder import SpanEncoder
from whence_server.telemetry.spans.span_events import MAX_EVENTS

MS = 1_000_000
STOPPED, EOS = generation_pb2.FINISH_REASON_STOP, generation_pb2.FINISH_REASON_END_OF_SEQUENCE
LENGTH = generation_pb2.FINISH_REASON_LENGTH
CALLER = {
    "rpc.method": "whence.v1.GenerationService/ResumeGeneration",
    "client.address": "192.0.2.7",
    "client.port": 50_000,
    "whence.caller.trace_id": "c" * 32,
    "whence.caller.span_id": "d" * 16,
}


def journal_of(
    occurrences: list[o.Occurrence] = [],  # noqa: B006 - it is not changed
    results: list[generation_pb2.SequenceResult] = [],  # noqa: B006
    **fields: object,
) -> MemoryJournal:
    """Return a generation of two steps (at 14 and 18 ms) with occurrences."""
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", **fields))
    for index in range(2):
        journal.append("g", EntryKind.STEP, step(index))
    for message in occurrences:
        journal.append("g", EntryKind.OCCURRENCE, message)
    ending = finished(2, sequences=results, finish_reason=LENGTH)
    journal.append("g", EntryKind.FINISHED, ending)
    return journal


async def generation_span(journal: MemoryJournal, **options: object) -> Span:
    (found,) = [s for s in await spans_of(journal, **options) if s.name.startswith("text_comp")]
    return found


async def events_of(journal: MemoryJournal, **options: object) -> list[tuple[str, int, dict]]:
    span = await generation_span(journal, **options)
    return [(e.name, e.time_unix_nano - START_NS, mapping(e.attributes)) for e in span.events]


async def test_the_first_token_is_an_event_without_its_text():
    (event,) = await events_of(journal_of())
    expected = {"whence.sequence.index": 0, "whence.token.id": 1_000}
    assert event == ("whence.generation.first_token", 14 * MS, expected)
    (event,) = await events_of(journal_of(), content=ContentCapture.SPAN_ONLY)
    assert event[2] == expected | {"whence.token.text": "secret"}


async def test_a_beam_search_has_no_first_token_event():
    decoding = generation_pb2.Decoding(beam_search=generation_pb2.BeamSearch(num_beams=2))
    assert await events_of(journal_of(effective_decoding=decoding)) == []


def result(reason: generation_pb2.FinishReason.ValueType, stop: str = "", index: int = 0):
    return generation_pb2.SequenceResult(sequence_index=index, finish_reason=reason, stop=stop)


@pytest.mark.parametrize(
    ("ended", "content", "expected"),
    [
        (result(STOPPED, "\n\n"), False, {"whence.stop.string": "\n\n"}),
        (result(STOPPED, "\n\n"), True, {"whence.stop.string": "\n\n"}),
        (result(STOPPED, " quokka"), False, {}),
        (result(STOPPED, " quokka"), True, {"whence.token.text": " quokka"}),
        (result(EOS), True, {}),
    ],
)
async def test_the_stop_of_a_sequence_is_an_event_under_the_content_policy(
    ended, content, expected
):
    capture = ContentCapture.SPAN_ONLY if content else ContentCapture.NO_CONTENT
    _, event = await events_of(journal_of(results=[ended]), content=capture)
    reason = "stop" if ended.finish_reason == STOPPED else "end_of_sequence"
    assert event == (
        "whence.sequence.stopped",
        18 * MS,
        {
            "whence.sequence.index": 0,
            "whence.token.id": 1_001,
            "whence.step.index": 1,
            "whence.generation.finish_reason": reason,
        }
        | expected,
    )


async def test_only_sequences_that_stopped_have_a_stop_event():
    results = [result(LENGTH), result(STOPPED, "\n\n", index=7)]
    assert len(await events_of(journal_of(results=results))) == 1


@pytest.mark.parametrize(
    ("happening", "name", "expected"),
    [
        (
            {
                "reader_left": o.ReaderLeft(
                    caller=caller(parent_span_id="e" * 16), last_offset=2, status_code=1
                )
            },
            "reader_left",
            {
                **CALLER,
                "whence.caller.parent_span_id": "e" * 16,
                "rpc.response.status_code": "CANCELLED",
                "whence.reader.last_offset": 2,
                "whence.reader.count": 0,
            },
        ),
        (
            {"reader_joined": o.ReaderJoined(caller=caller(), after_offset=9, num_readers=1)},
            "reader_joined",
            {**CALLER, "whence.reader.after_offset": 9, "whence.reader.count": 1},
        ),
        (
            {"engine_ended": o.EngineEnded(detail="signal 9")},
            "engine_ended",
            {"whence.engine.end": "signal 9"},
        ),
        ({"engine_resumed": o.EngineResumed()}, "engine_resumed", {}),
        (
            {"cancelled": o.GenerationCancelled(caller=caller())},
            "cancelled",
            {"whence.cancel.cause": "call", **CALLER},
        ),
        (
            {"cancelled": o.GenerationCancelled(without_reader=Duration(nanos=3))},
            "cancelled",
            {"whence.cancel.cause": "no_reader", "whence.cancel.without_reader_ns": 3},
        ),
        (
            {"max_duration_passed": o.MaxDurationPassed(max_duration=Duration(seconds=2))},
            "max_duration_passed",
            {"whence.generation.max_duration_ns": 2_000_000_000},
        ),
    ],
)
async def test_every_occurrence_is_an_event(happening, name, expected):
    _, event = await events_of(journal_of([occurrence(20 * MS, 2, **happening)]))
    expected = expected | {"whence.generation.num_steps": 2}
    assert event == (f"whence.generation.{name}", 20 * MS, expected)


async def test_a_caller_on_a_unix_socket_has_no_port():
    unix = caller(address="unix", port=None)
    happened = occurrence(0, cancelled=o.GenerationCancelled(caller=unix))
    event, _ = await events_of(journal_of([happened]))
    assert event[2]["client.address"] == "unix"
    assert "client.port" not in event[2]


async def test_events_come_in_order_of_time_and_the_failure_last():
    resumed = occurrence(16 * MS, 1, engine_resumed=o.EngineResumed())
    ended = occurrence(15 * MS, 1, engine_ended=o.EngineEnded(detail="signal 9"))
    before = occurrence(1 * MS, reader_joined=o.ReaderJoined(caller=caller()))
    journal = journal_of([before, ended, resumed])
    failure = generation_pb2.Failure(reason="OUT_OF_MEMORY", message="too much")
    failed = finished(
        2, finish_reason=generation_pb2.FINISH_REASON_FAILED, failure=failure, sequences=[]
    )
    journal.entries[-1] = journal.entries[-1]._replace(payload=failed.SerializeToString())
    assert [name for name, _, _ in await events_of(journal)] == [
        "whence.generation.reader_joined",
        "whence.generation.first_token",
        "whence.generation.engine_ended",
        "whence.generation.engine_resumed",
        "exception",
    ]


async def test_the_span_lasts_until_its_last_event():
    late = occurrence(90 * MS, cancelled=o.GenerationCancelled(caller=caller()))
    span = await generation_span(journal_of([late]))
    assert span.end_time_unix_nano == START_NS + 90 * MS


async def test_more_events_than_the_limit_are_counted():
    many = [occurrence(20 * MS + i, i, engine_resumed=o.EngineResumed()) for i in range(MAX_EVENTS)]
    span = await generation_span(journal_of(many))
    assert (len(span.events), span.dropped_events_count) == (MAX_EVENTS, 1)
    steps = [mapping(e.attributes).get("whence.generation.num_steps") for e in span.events]
    assert steps == [None, *range(63), *range(64, 128)]


async def test_occurrences_that_cannot_be_shown_are_left_out():
    journal = journal_of([o.Occurrence(time=timestamp(START_NS))])  # of a later version
    journal.append("g", EntryKind.STARTED)  # another number for the next position
    garbled = journal.entries[3]._replace(payload=b"\xff")
    assert garbled.kind is EntryKind.OCCURRENCE
    assert len(await events_of(journal)) == 1
    journal.entries[3] = garbled
    assert len(await events_of(journal)) == 1


async def test_spans_with_events_are_the_same_from_every_start():
    journal = journal_of(
        [
            occurrence(15 * MS, 1, reader_left=o.ReaderLeft(caller=caller())),
            occurrence(16 * MS, 1, cancelled=o.GenerationCancelled(caller=caller())),
        ]
    )
    whole = await encoded(journal)
    # What an earlier version would not have written after the finish changes nothing.
    journal.append("g", EntryKind.OCCURRENCE, occurrence(17 * MS, engine_resumed=o.EngineResumed()))
    assert await encoded(journal) == whole
    for entry in journal.entries:
        if entry.kind is EntryKind.FINISHED:
            again = await SpanEncoder(journal).encode(entry)
            assert again == whole[-len(again) :]
            assert len(only_span(again[0]).events) == 3


async def test_a_deleted_generation_has_no_events():
    journal = journal_of([occurrence(0, engine_resumed=o.EngineResumed())])
    ending = journal.entries[-1]
    journal.delete("g")
    assert await SpanEncoder(journal).encode(ending) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            call_pb2.CallError(reason="INVALID_REQUEST", field="prompt", message="prompt: is bad"),
            {
                "whence.error.reason": "INVALID_REQUEST",
                "whence.error.field": "prompt",
                "whence.error.message": "prompt: is bad",
            },
        ),
        (
            call_pb2.CallError(reason="QUEUE_FULL", message="is full"),
            {"whence.error.reason": "QUEUE_FULL", "whence.error.message": "is full"},
        ),
        (call_pb2.CallError(exception_type="KeyError"), {"exception.type": "KeyError"}),
        (None, {}),
    ],
)
async def test_the_server_span_says_why_the_call_failed(error, expected):
    journal = MemoryJournal()
    journal.append("g", EntryKind.CALL, call("g", status_code=3, error=error))
    (server,) = await spans_of(journal)
    found = attributes(server)
    assert {k: v for k, v in found.items() if "error" in k or "exception" in k} == expected
