"""Conversations of the contract: converted, refused by field, and recorded as requested."""

import json

import pytest

from whence.v1 import generation_pb2 as g
from whence_server.domain.chat import (
    ChatInput,
    ChatMessage,
    ChatRecord,
    OutputForms,
    ParsedReasoning,
    ParsedToolCall,
    ToolCall,
)
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.journal.chat_codec import (
    convert_chat_record,
    convert_parsed_call,
    convert_reasoning,
)
from whence_server.rpc.conversions import convert_request

LIMITS = Limits()
M = g.ChatMessage
CHAT = g.ChatInput(
    messages=[
        M(role="user", content_parts=[g.ContentPart(text="a"), g.ContentPart(text="b")]),
        M(
            role="assistant",
            no_content=True,
            tool_calls=[g.ToolCall(id="1", name="f", arguments_json="{}"), g.ToolCall(name="g")],
            reasoning_content="",
        ),
        M(role="tool", content="", tool_call_id="1", name=""),
    ],
    template_arguments_json='{"b": 1, "a": 2}',
    template_name="rag",
    tools_json='[{"name": "f"}]',
)
CONVERTED = ChatInput(
    (
        ChatMessage("user", ("a", "b")),
        ChatMessage(
            "assistant", None, (ToolCall("f", "{}", "1"), ToolCall("g")), reasoning_content=""
        ),
        ChatMessage("tool", "", tool_call_id="1", name=""),
    ),
    '{"b": 1, "a": 2}',
    "rag",
    '[{"name": "f"}]',
)


def test_absent_and_empty_fields_differ():
    assert convert_request(g.GenerateRequest(chat=CHAT), LIMITS).input == CONVERTED


def test_the_record_is_the_input_as_requested():
    forms = OutputForms("hermes", "think", begins_in_reasoning=True)
    assert convert_chat_record(ChatRecord(CONVERTED, "rag", forms)) == g.ChatRecord(
        input=CHAT,
        template_name="rag",
        tool_call_format="hermes",
        reasoning_format="think",
        begins_in_reasoning=True,
    )


def test_parts_of_an_output_are_recorded_with_their_places():
    parsed = ParsedToolCall(ToolCall("f", '{"a": 1}', "abc"), 3, 17)
    call = g.ToolCall(id="abc", name="f", arguments_json='{"a": 1}')
    assert convert_parsed_call(parsed) == g.ParsedToolCall(
        call=call, text_begin_byte=3, text_end_byte=17
    )
    reasoning = g.ParsedReasoning(text="hm", text_begin_byte=1, text_end_byte=9)
    assert convert_reasoning(ParsedReasoning("hm", 1, 9)) == reasoning
    assert convert_reasoning(None) is None


def test_equal_conversations_have_equal_digests_and_others_do_not():
    def digest(**fields: object) -> str:
        return convert_request(g.GenerateRequest(chat=g.ChatInput(**fields)), LIMITS).digest

    message = M(role="assistant", tool_calls=[g.ToolCall(name="f")])
    assert digest(messages=[message]) == digest(messages=[M(**_fields(message))])
    others = [
        M(role="assistant", tool_calls=[g.ToolCall(name="f")], no_content=True),
        M(role="assistant", tool_calls=[g.ToolCall(name="f", id="1")]),
        M(role="assistant", tool_calls=[g.ToolCall(name="f")], reasoning_content=""),
    ]
    assert len({digest(messages=[each]) for each in (message, *others)}) == 4
    assert digest(messages=[message], tools_json="[]") != digest(messages=[message])


def _fields(message: g.ChatMessage) -> dict[str, object]:
    return {"role": message.role, "tool_calls": list(message.tool_calls)}


@pytest.mark.parametrize(
    ("message", "field", "part"),
    [
        (M(content="a"), "role", "must not be empty"),
        (M(role="u", content="a", no_content=True), "no_content", "so is `content`"),
        (
            M(role="u", content="a", content_parts=[g.ContentPart(text="b")]),
            "content_parts",
            "so is `content`",
        ),
        (
            M(role="u", content_parts=[g.ContentPart(text="b"), g.ContentPart()]),
            "content_parts[1]",
            "parts of text alone, no images",
        ),
        (M(role="u", tool_calls=[g.ToolCall()]), "tool_calls[0].name", "must not be empty"),
    ],
)
def test_faults_are_named_by_their_field(message: g.ChatMessage, field: str, part: str):
    request = g.GenerateRequest(chat=g.ChatInput(messages=[M(role="u"), message]))
    with pytest.raises(InvalidRequestError) as caught:
        convert_request(request, LIMITS)
    (violation,) = caught.value.violations
    assert violation.field == f"chat.messages[1].{field}"
    assert part in violation.description


def test_only_the_first_faults_of_many_messages_are_told():
    request = g.GenerateRequest(chat=g.ChatInput(messages=[M()] * 100))
    with pytest.raises(InvalidRequestError) as caught:
        convert_request(request, LIMITS)
    assert len(caught.value.violations) == 8


def test_tools_that_are_too_long_are_refused():
    tools = json.dumps([{"a": "x" * LIMITS.max_template_arguments_bytes}])
    request = g.GenerateRequest(chat=g.ChatInput(messages=[M(role="u")], tools_json=tools))
    with pytest.raises(InvalidRequestError, match=r"chat.tools_json: has .* at most 1048576"):
        convert_request(request, LIMITS)
