"""Hiding of content: from a caller with `read`, and by the content policy from the record."""

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from whence.v1 import generation_pb2, step_pb2, trace_pb2
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal.content_hiding import READER, RECORD, Hiding
from whence_server.journal.entry_messages import MESSAGES

SECRET_TEXT, SECRET_ID = "secret-text", 987_654_321
RESPONSES = (
    trace_pb2.GetGenerationResponse,
    trace_pb2.ListGenerationsResponse,
    trace_pb2.ListStepsResponse,
    trace_pb2.WatchGenerationsResponse,
)


def fill(message: Message, depth: int = 0, *, first: bool = False) -> None:
    """Set every field: texts to SECRET_TEXT, token ids to SECRET_ID.

    Of each oneof the last member stays set, or the first.
    """
    fields = message.DESCRIPTOR.fields
    for field in reversed(fields) if first else fields:
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            values = getattr(message, field.name)
            key = SECRET_TEXT if kind.fields_by_name["key"].type == 9 else SECRET_ID
            is_text = kind.fields_by_name["value"].type == 9
            values[key] = SECRET_TEXT if is_text else 1.0
        elif kind is not None:
            value = getattr(message, field.name)
            if field.is_repeated:
                value = value.add()
            elif kind.full_name.startswith("whence."):
                value.SetInParent()
            if kind.full_name.startswith("whence.") and depth < 8:
                fill(value, depth + 1, first=first)
        else:
            value = {
                FieldDescriptor.CPPTYPE_STRING: SECRET_TEXT
                if field.type == FieldDescriptor.TYPE_STRING
                else SECRET_TEXT.encode(),
                FieldDescriptor.CPPTYPE_BOOL: True,
                FieldDescriptor.CPPTYPE_ENUM: 1,
                FieldDescriptor.CPPTYPE_FLOAT: 1.5,
                FieldDescriptor.CPPTYPE_DOUBLE: 1.5,
            }.get(field.cpp_type, 7)
            if "token_id" in field.name and field.enum_type is None:
                value = SECRET_ID
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("hiding", [READER, RECORD[ContentPolicy.NONE]])
def test_no_text_and_no_token_id_is_left(
    hiding: Hiding, response: type[Message], first: bool
) -> None:
    filled = response()
    fill(filled, first=first)
    assert SECRET_TEXT in str(filled)
    hiding.hide(filled)
    shown = [
        line.strip().partition(":")[0] for line in str(filled).splitlines() if SECRET_TEXT in line
    ]
    assert str(SECRET_ID) not in str(filled)
    for content in ("prompt", "text", "content", "arguments_json", "stop", "regex", "tools_json"):
        assert content not in shown
    for secret in ("prompt_preview", "text_preview", "reasoning_content", "noise", "leaf_secret"):
        assert secret not in str(filled)
    if hiding is READER:
        assert "request_digest" not in str(filled)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("response", RESPONSES)
def test_a_record_of_tokens_has_ids_and_no_text(response: type[Message], first: bool) -> None:
    filled = response()
    fill(filled, first=first)
    whole = str(filled)
    RECORD[ContentPolicy.TOKENS].hide(filled)
    shown = [
        line.strip().partition(":")[0] for line in str(filled).splitlines() if SECRET_TEXT in line
    ]
    assert str(filled).count(str(SECRET_ID)) == whole.count(str(SECRET_ID))
    for text in ("prompt", "text", "content", "arguments_json", "stop", "regex", "tools_json"):
        assert text not in shown
    for text in ("prompt_preview", "text_preview", "reasoning_content", "message", "bad_words"):
        assert text not in shown


def test_a_record_of_tokens_has_the_draw_and_the_byte_ranges() -> None:
    step = step_pb2.Step(token_id=5, text="x", text_begin_byte=3, text_end_byte=4, token_text="x")
    step.draw.noise = 0.5
    step.candidates.token_ids.append(5)
    step.candidates.texts.append("x")
    RECORD[ContentPolicy.TOKENS].hide(step)
    kept = step_pb2.Step(token_id=5, text_begin_byte=3, text_end_byte=4)
    kept.draw.noise = 0.5
    kept.candidates.token_ids.append(5)
    assert step == kept


def test_a_record_of_numbers_has_nothing_that_tells_a_token() -> None:
    step = step_pb2.Step(token_id=5, text="x", text_begin_byte=3, text_end_byte=4, logprob=-0.5)
    step.draw.noise, step.draw.margin = 0.5, 0.25
    RECORD[ContentPolicy.NONE].hide(step)
    kept = step_pb2.Step(logprob=-0.5)
    kept.draw.margin = 0.25
    assert step == kept


def test_numbers_stay() -> None:
    step = step_pb2.Step(index=3, token_id=5, text="x", logprob=-0.5, rank=1, entropy=2.0)
    step.candidates.token_ids.append(5)
    step.candidates.logprobs.append(-0.5)
    step.draw.runner_up_token_id = 9
    step.draw.margin = 0.25
    READER.hide(step)
    kept = step_pb2.Step(index=3, logprob=-0.5, rank=1, entropy=2.0)
    kept.draw.margin = 0.25
    assert step == kept


def test_new_text_is_hidden_until_it_is_listed() -> None:
    fields = generation_pb2.GenerationStarted.DESCRIPTOR.fields_by_name
    assert READER.is_content(fields["prompt"])
    assert READER.is_content(fields["request_digest"]), "short prompts can be guessed from it"
    assert not READER.is_content(fields["owner"])
    unlisted = generation_pb2.GenerateRequest.DESCRIPTOR.fields_by_name
    assert READER.is_content(unlisted["model"])


def test_arguments_of_a_template_are_hidden_in_both_forms() -> None:
    chat = generation_pb2.ChatInput(template_arguments_json='{"a": 1}', template_name="default")
    chat.template_arguments.update({"customer": SECRET_TEXT})
    READER.hide(chat)
    assert chat == generation_pb2.ChatInput()


def test_message_of_a_failure_is_hidden_because_an_upstream_may_quote_the_prompt_in_it() -> None:
    finished = generation_pb2.GenerationFinished()
    finished.failure.code, finished.failure.reason = 3, "UPSTREAM_REFUSED"
    finished.failure.message = f"vllm refused the request (400): input: {SECRET_TEXT}"
    finished.failure.retry_delay.seconds = 2
    finished.end_time.seconds = 5
    READER.hide(finished)
    kept = generation_pb2.GenerationFinished()
    kept.failure.code, kept.failure.reason = 3, "UPSTREAM_REFUSED"
    kept.failure.retry_delay.seconds = 2
    kept.end_time.seconds = 5
    assert finished == kept


def test_fields_of_a_later_version_are_hidden() -> None:
    later = step_pb2.Step(index=1).SerializeToString() + b"\xfa\x7f" + b"\x06secret"
    entry = Entry(1, "g", 1, EntryKind.STEP, later)
    assert step_pb2.Step.FromString(later).SerializeToString() == later
    assert READER.hide_entry(entry).payload == step_pb2.Step(index=1).SerializeToString()


@pytest.mark.parametrize("kind", MESSAGES)
def test_entries_of_every_kind_are_hidden(kind: EntryKind) -> None:
    message = MESSAGES[kind]()
    fill(message)
    assert str(SECRET_ID) in str(message)
    entry = READER.hide_entry(Entry(1, "g", 1, kind, message.SerializeToString()))
    assert str(SECRET_ID) not in str(MESSAGES[kind].FromString(entry.payload))


def test_the_kind_of_a_constraint_stays_without_its_text() -> None:
    decoding = generation_pb2.Decoding(constraint=generation_pb2.Constraint(regex=SECRET_TEXT))
    decoding.forced.text = SECRET_TEXT
    READER.hide(decoding)
    assert SECRET_TEXT not in str(decoding)
    assert decoding.constraint.WhichOneof("language") == "regex"
    assert decoding.forced.WhichOneof("continuation") == "text"


def test_an_optional_text_is_absent() -> None:
    message = generation_pb2.ChatMessage(tool_call_id=SECRET_TEXT, name=SECRET_TEXT)
    READER.hide(message)
    assert message == generation_pb2.ChatMessage()


def test_lengths_of_an_answers_parts_are_hidden_with_its_ids() -> None:
    result = generation_pb2.SequenceResult(sequence_index=1)
    result.tool_calls.add(text_begin_byte=3, text_end_byte=4)
    result.reasoning.text_end_byte = 2
    none = generation_pb2.SequenceResult.FromString(result.SerializeToString())
    RECORD[ContentPolicy.NONE].hide(none)
    assert not none.tool_calls[0].ListFields()
    assert not none.reasoning.ListFields()
    RECORD[ContentPolicy.TOKENS].hide(result)
    assert (result.tool_calls[0].text_end_byte, result.reasoning.text_end_byte) == (4, 2)
