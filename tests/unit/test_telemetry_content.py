"""Prompts, outputs and tokens' texts: nowhere by default, and where they are asked for."""

import itertools
import json

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import SEVERITY_NUMBER_DEBUG, LogRecord, ScopeLogs
from span_reading import attributes, encoded, mapping, named, spans_of
from telemetry_journal import TRACE_ID, MemoryJournal, finished, started, step

from whence.v1 import generation_pb2
from whence_server.config.telemetry import (
    CAPTURE_VARIABLE,
    read_content_capture,
    warn_of_old_capture,
)
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.telemetry import ContentCapture, StepForm
from whence_server.telemetry.journal import UnreadableEntryError
from whence_server.telemetry.spans.events import EventEncoder

PROMPT, OUTPUT = 'A "secret" question\n', "sécret änswer"
PIECES = ("séc", "ret", " änswer")
INPUT_MESSAGES = [{"role": "user", "parts": [{"type": "text", "content": PROMPT}]}]
OUTPUT_MESSAGES = [
    {
        "role": "assistant",
        "parts": [{"type": "text", "content": OUTPUT}],
        "finish_reason": "length",
    }
]


def confided(**fields: object) -> MemoryJournal:
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", **{"prompt": PROMPT, **fields}))
    for index, text in enumerate(PIECES):
        journal.append("g", EntryKind.STEP, step(index, text=text))
    length = generation_pb2.FINISH_REASON_LENGTH
    result = generation_pb2.SequenceResult(text=OUTPUT, finish_reason=length)
    journal.append("g", EntryKind.FINISHED, finished(3, sequences=[result], finish_reason=length))
    return journal


SECRET = "the capital of Atlantis"


@pytest.mark.parametrize("content", [ContentCapture.NO_CONTENT, ContentCapture.SPAN_ONLY])
@pytest.mark.parametrize(
    ("reason", "fields", "quotes"),
    [
        ("UPSTREAM_REFUSED", {}, True),
        ("ValueError", {"recorded": generation_pb2.RecordedElsewhere(library="x/1")}, True),
        ("NON_FINITE_LOGITS", {}, False),
    ],
)
async def test_message_of_a_failure_that_may_quote_the_prompt_is_content(
    content: ContentCapture, reason: str, fields: dict[str, object], quotes: bool
) -> None:
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", **fields))
    failure = generation_pb2.Failure(code=3, reason=reason, message=f"refused: {SECRET}")
    ending = finished(
        0, 0, finish_reason=generation_pb2.FINISH_REASON_FAILED, failure=failure, sequences=[]
    )
    journal.append("g", EntryKind.FINISHED, ending)
    (span,) = await spans_of(journal, content=content)
    hidden = quotes and content is ContentCapture.NO_CONTENT
    assert (SECRET in str(span)) is not hidden
    assert (SECRET in span.status.message) is not hidden
    assert attributes(span)["error.type"] == reason
    (event,) = span.events
    assert mapping(event.attributes)["exception.type"] == reason


async def events_of(journal: MemoryJournal, content: ContentCapture) -> list[bytes]:
    encoder = EventEncoder(journal, content)
    return [event for entry in journal.entries for event in await encoder.encode(entry)]


def holds_content(exported: bytes) -> bool:
    pieces = ("secret", "question", OUTPUT, *PIECES)
    return any(piece.encode() in exported for piece in pieces)


async def test_by_default_no_byte_of_content_is_exported():
    for step_spans, form in itertools.product((1_000, 1, 0), StepForm):
        options = {"step_spans": step_spans, "step_form": form, "token_arrays": 5}
        exported = b"".join(await encoded(confided(), **options))
        assert exported
        assert not holds_content(exported)
    assert not await events_of(confided(), ContentCapture.NO_CONTENT)


@pytest.mark.parametrize("content", list(ContentCapture))
async def test_content_goes_where_it_is_wanted_and_nowhere_else(content):
    journal = confided()
    assert holds_content(b"".join(await encoded(journal, content=content))) is content.on_spans
    events = await events_of(journal, content)
    assert len(events) == content.on_events
    assert holds_content(b"".join(events)) is content.on_events


async def test_spans_hold_the_messages_as_json_and_the_tokens_texts():
    spans = await spans_of(confided(), content=ContentCapture.SPAN_ONLY)
    texts = [attributes(span)["whence.token.text"] for span in named(spans, "decode_step")]
    assert texts == list(PIECES)
    (generation,) = named(spans, "text_completion demo")
    found = attributes(generation)
    assert json.loads(found["gen_ai.input.messages"]) == INPUT_MESSAGES
    assert json.loads(found["gen_ai.output.messages"]) == OUTPUT_MESSAGES


CALL = generation_pb2.ToolCall(
    id="a1b2c3d4e",
    name="get_secret",
    arguments_json='{"town": "Zürich", "n": [1, 2.5, null, true]}',
)
ARGUMENTS = {"town": "Zürich", "n": [1, 2.5, None, True]}
DEFINITION = {"name": "get_secret", "parameters": {"type": "object"}}
CONVERSATION = generation_pb2.ChatInput(
    messages=[
        generation_pb2.ChatMessage(role="system", content="Keep secrets."),
        generation_pb2.ChatMessage(
            role="user",
            name="Ada",
            content_parts=[generation_pb2.ContentPart(text=text) for text in ("a", "b")],
        ),
        generation_pb2.ChatMessage(
            role="assistant", no_content=True, tool_calls=[CALL], reasoning_content="Hm."
        ),
        generation_pb2.ChatMessage(role="tool", content="42", tool_call_id="a1b2c3d4e"),
    ],
    tools_json=json.dumps([{"type": "function", "function": DEFINITION}]),
)
PART = {"type": "tool_call", "id": "a1b2c3d4e", "name": "get_secret", "arguments": ARGUMENTS}
CHAT_INPUT = [
    {"role": "system", "parts": [{"type": "text", "content": "Keep secrets."}]},
    {
        "role": "user",
        "parts": [{"type": "text", "content": "a"}, {"type": "text", "content": "b"}],
        "name": "Ada",
    },
    {"role": "assistant", "parts": [{"type": "reasoning", "content": "Hm."}, PART]},
    {
        "role": "tool",
        "parts": [{"type": "tool_call_response", "id": "a1b2c3d4e", "response": "42"}],
    },
]
CHAT_TEXT = "<think>Why?</think>Let me look.<call>"
CHAT_OUTPUT = [
    {
        "role": "assistant",
        "parts": [
            {"type": "reasoning", "content": "Why?"},
            {"type": "text", "content": "Let me look."},
            PART,
        ],
        "finish_reason": "tool_call",
    }
]


def conversation(**chat: object) -> MemoryJournal:
    """Return a journal with a chat that calls a tool."""
    journal = MemoryJournal()
    record = generation_pb2.ChatRecord(**{"input": CONVERSATION, **chat})
    start = started("g", prompt=PROMPT, operation="chat", chat=record)
    journal.append("g", EntryKind.STARTED, start)
    end_of_sequence = generation_pb2.FINISH_REASON_END_OF_SEQUENCE
    reasoning = generation_pb2.ParsedReasoning(text="Why?", text_end_byte=19)
    parsed = generation_pb2.ParsedToolCall(call=CALL, text_begin_byte=31, text_end_byte=37)
    result = generation_pb2.SequenceResult(
        text=CHAT_TEXT, finish_reason=end_of_sequence, tool_calls=[parsed], reasoning=reasoning
    )
    ending = finished(0, sequences=[result], finish_reason=end_of_sequence)
    journal.append("g", EntryKind.FINISHED, ending)
    return journal


async def test_a_conversation_has_parts_for_reasoning_tool_calls_and_their_results():
    spans = await spans_of(conversation(), content=ContentCapture.SPAN_ONLY)
    (generation,) = named(spans, "chat demo")
    found = attributes(generation)
    assert json.loads(found["gen_ai.input.messages"]) == CHAT_INPUT
    assert json.loads(found["gen_ai.output.messages"]) == CHAT_OUTPUT
    assert json.loads(found["gen_ai.tool.definitions"]) == [{"type": "function", **DEFINITION}]
    assert found["gen_ai.response.finish_reasons"] == ["tool_call"]


async def test_an_event_of_a_conversation_has_the_same_in_structured_form():
    (event,) = await events_of(conversation(), ContentCapture.EVENT_ONLY)
    found = mapping(record_of(event).attributes)
    assert found["gen_ai.input.messages"] == CHAT_INPUT
    assert found["gen_ai.output.messages"] == CHAT_OUTPUT
    assert found["gen_ai.tool.definitions"] == [{"type": "function", **DEFINITION}]


async def test_no_byte_of_a_conversation_is_exported_by_default():
    words = [b"secret", b"Keep", b"Ada", b"rich", b"Hm.", b"42", b"Why?", b"look"]
    exported = b"".join(await encoded(conversation()))
    assert exported
    assert not [word for word in words if word in exported]
    shown = b"".join(await encoded(conversation(), content=ContentCapture.SPAN_ONLY))
    assert all(word in shown for word in words)


async def test_tools_among_the_template_arguments_are_definitions_too():
    arguments = json.dumps({"tools": [{"name": "f", "type": "other"}]})
    given = generation_pb2.ChatInput(
        messages=CONVERSATION.messages, template_arguments_json=arguments
    )
    spans = await spans_of(conversation(input=given), content=ContentCapture.SPAN_ONLY)
    found = attributes(named(spans, "chat demo")[0])
    assert json.loads(found["gen_ai.tool.definitions"]) == [{"name": "f", "type": "other"}]


async def test_a_prompt_that_is_not_recorded_makes_no_message():
    journal = confided(prompt="")
    spans = await spans_of(journal, content=ContentCapture.SPAN_AND_EVENT)
    (generation,) = named(spans, "text_completion demo")
    assert "gen_ai.input.messages" not in attributes(generation)
    (event,) = await events_of(journal, ContentCapture.SPAN_AND_EVENT)
    assert "gen_ai.input.messages" not in mapping(record_of(event).attributes)


def record_of(event: bytes) -> LogRecord:
    (record,) = ScopeLogs.FromString(event).log_records
    return record


async def test_an_event_is_the_log_record_of_the_conventions():
    journal = confided()
    (event,) = await events_of(journal, ContentCapture.EVENT_ONLY)
    record = record_of(event)
    assert record.event_name == "gen_ai.client.inference.operation.details"
    assert record.severity_number == SEVERITY_NUMBER_DEBUG
    (generation,) = named(await spans_of(journal), "text_completion demo")
    assert (record.trace_id.hex(), record.flags) == (TRACE_ID, 1)
    assert record.span_id == generation.span_id
    assert record.time_unix_nano == generation.end_time_unix_nano == record.observed_time_unix_nano
    counted = ("whence.step.summary", "unlikely", "least_likely")
    on_both = {k: v for k, v in attributes(generation).items() if not any(c in k for c in counted)}
    assert mapping(record.attributes) == on_both | {
        "gen_ai.input.messages": INPUT_MESSAGES,
        "gen_ai.output.messages": OUTPUT_MESSAGES,
    }


async def test_events_do_not_need_a_sampled_trace():
    """An unsampled generation has an event, whose flags show that it has no spans."""
    journal = confided(trace_flags=0)
    assert not await encoded(journal)
    (event,) = await events_of(journal, ContentCapture.EVENT_ONLY)
    assert record_of(event).flags == 0


async def test_a_deleted_generation_has_no_event():
    journal = confided()
    encoder = EventEncoder(journal, ContentCapture.EVENT_ONLY)
    last = journal.entries[-1]
    journal.delete("g")
    assert not await encoder.encode(last)
    assert not await events_of(journal, ContentCapture.EVENT_ONLY)


async def test_an_unreadable_entry_is_an_error_that_names_it():
    journal = confided()
    broken = journal.entries[-1]._replace(payload=b"\xff\xff")
    with pytest.raises(UnreadableEntryError, match=r"'g', FINISHED\) cannot be made into an event"):
        await EventEncoder(journal, ContentCapture.EVENT_ONLY).encode(broken)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ContentCapture.NO_CONTENT),
        ("", ContentCapture.NO_CONTENT),
        ("false", ContentCapture.NO_CONTENT),
        ("NO_CONTENT", ContentCapture.NO_CONTENT),
        ("span_only", ContentCapture.SPAN_ONLY),
        ("EVENT_ONLY", ContentCapture.EVENT_ONLY),
        (" SPAN_AND_EVENT ", ContentCapture.SPAN_AND_EVENT),
    ],
)
def test_the_capture_variable_sets_where_content_goes(text, expected):
    assert read_content_capture({} if text is None else {CAPTURE_VARIABLE: text}) is expected


@pytest.mark.parametrize("text", ["true", "TRUE", " True "])
def test_the_old_value_true_puts_content_on_spans_and_names_the_newer_values(text, caplog):
    assert read_content_capture({CAPTURE_VARIABLE: text}) is ContentCapture.SPAN_ONLY
    assert not caplog.messages
    warn_of_old_capture({CAPTURE_VARIABLE: text})
    (warning,) = caplog.messages
    assert f"is {text.strip()!r}, an old value, and means SPAN_ONLY" in warning
    assert all(one.value in warning for one in ContentCapture)


@pytest.mark.parametrize("one", [*ContentCapture, None])
def test_no_other_value_is_called_old(one, caplog):
    warn_of_old_capture({} if one is None else {CAPTURE_VARIABLE: one.value})
    assert not caplog.messages


@pytest.mark.parametrize("text", ["yes", "1", "SPANS"])
def test_an_invalid_capture_setting_is_an_error_that_names_it(text):
    with pytest.raises(ConfigurationError, match=f"'{text}'; it must be one of NO_CONTENT, "):
        read_content_capture({CAPTURE_VARIABLE: text})
