"""Conversations as clients of OpenAI's API send them, and outputs as messages to send back."""

import json
from typing import Any

import pytest

from whence.outputs import convert_tool_call, make_message
from whence.requests import generate_request
from whence.v1 import generation_pb2 as pb

ARGUMENTS = {"town": "Zürich", "days": 2**60, "z": [None, {"b": 1, "a": 2.5}]}


def chat_of(*messages: object, **options: Any) -> pb.ChatInput:
    return generate_request(None, {"messages": messages, **options}).chat


def call(arguments: object = "{}", **fields: object) -> dict[str, object]:
    function = {"name": "f", "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function, **fields}


def calling(*calls: object, **fields: object) -> dict[str, object]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **fields}


def test_a_whole_conversation_is_carried():
    chat = chat_of(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]},
        calling(call(), reasoning_content="Hm."),
        {"role": "tool", "tool_call_id": "call_1", "name": "f", "content": ""},
    )
    of_call = pb.ToolCall(id="call_1", name="f", arguments_json="{}")
    assert list(chat.messages) == [
        pb.ChatMessage(role="system", content="Be brief."),
        pb.ChatMessage(
            role="user", content_parts=[pb.ContentPart(text="a"), pb.ContentPart(text="")]
        ),
        pb.ChatMessage(
            role="assistant", tool_calls=[of_call], no_content=True, reasoning_content="Hm."
        ),
        pb.ChatMessage(role="tool", tool_call_id="call_1", name="f"),
    ]
    assert [m.no_content for m in chat.messages] == [False, False, True, False]


def test_a_message_as_openais_library_writes_it_can_be_sent_back():
    written = {
        "content": None,
        "refusal": None,
        "role": "assistant",
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": [
            {
                "id": "call_1",
                "function": {"arguments": '{"a": 1}', "name": "f"},
                "type": "function",
                "index": 0,
            }
        ],
    }
    (message,) = chat_of(written).messages
    assert message.tool_calls[0] == pb.ToolCall(id="call_1", name="f", arguments_json='{"a": 1}')
    plain = {**written, "content": "Hi", "tool_calls": None}
    assert chat_of(plain).messages[0] == pb.ChatMessage(role="assistant", content="Hi")


def test_arguments_are_text_or_a_mapping():
    text = '{"b":1,  "a": 2.50}'
    as_text, as_mapping, none, empty = (
        chat_of(calling(call(text), call(ARGUMENTS), call(None), call(""))).messages[0].tool_calls
    )
    assert as_text.arguments_json == text
    assert as_mapping.arguments_json == json.dumps(ARGUMENTS, ensure_ascii=False)
    assert (none.arguments_json, empty.arguments_json) == ("", "")


def test_tools_keep_integers_and_the_order_of_keys():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"z": 2**60, "a": 1.0}}}]
    chat = chat_of({"role": "user", "content": "Hi"}, tools=tools)
    assert chat.tools_json == json.dumps(tools, separators=(",", ":"))
    assert chat_of({"role": "user", "content": "Hi"}).tools_json == ""
    assert chat_of({"role": "user", "content": "Hi"}, tools=[]).tools_json == "[]"


def test_continuing_is_an_argument_of_the_template():
    given = {"role": "assistant", "content": "It"}
    chat = chat_of(given, continue_final_message=True, template_arguments={"a": 1})
    assert json.loads(chat.template_arguments_json) == {"a": 1, "continue_final_message": True}
    with pytest.raises(ValueError, match="`continue_final_message` is an option and a template"):
        chat_of(
            given,
            continue_final_message=True,
            template_arguments={"continue_final_message": True},
        )


@pytest.mark.parametrize("option", ["tools", "continue_final_message"])
def test_options_of_a_chat_need_messages(option):
    with pytest.raises(ValueError, match=f"`{option}` is for a chat template: give `messages`"):
        generate_request("p", {option: [] if option == "tools" else True})


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        ("Hi", TypeError, "messages[0] must be a mapping, not str"),
        ({"content": "Hi"}, ValueError, "messages[0] has no role"),
        ({"role": 1, "content": "Hi"}, TypeError, "messages[0].role must be text"),
        ({"role": "user", "contents": "Hi"}, ValueError, "did you mean 'content'"),
        ({"role": "user", "content": None}, ValueError, "messages[0] has no content"),
        ({"role": "user", "content": []}, ValueError, "messages[0].content has no parts"),
        ({"role": "user", "content": {}}, TypeError, "messages[0].content must be text, or a list"),
        ({"role": "user", "content": ["a"]}, TypeError, "messages[0].content[0] must be a mapping"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]},
            ValueError,
            "messages[0].content[1].type is 'image_url'; the server takes parts of text alone",
        ),
        (
            {"role": "user", "content": [{"type": "text"}]},
            TypeError,
            "messages[0].content[0].text must be text",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"x": 1}}]},
            ValueError,
            "messages[0].content[0] has 'cache_control'",
        ),
        ({"role": "user", "content": "a", "audio": {"id": "x"}}, ValueError, "has 'audio'"),
        ({"role": "user", "content": "a", "name": 1}, TypeError, "messages[0].name must be text"),
        (calling("f"), TypeError, "messages[0].tool_calls[0] must be a mapping"),
        ({**calling(), "tool_calls": call()}, TypeError, "messages[0].tool_calls must be a list"),
        (calling(call(type="custom")), ValueError, "tool_calls[0].type is 'custom'"),
        (calling({"id": "x"}), TypeError, "tool_calls[0].function must be a mapping"),
        (
            calling(call(), {"function": {"arguments": "{}"}}),
            TypeError,
            "messages[0].tool_calls[1].function.name must be text",
        ),
        (calling(call("{")), ValueError, "tool_calls[0].function.arguments is no JSON: "),
        (calling(call("[1]")), ValueError, "function.arguments is no JSON object: '[1]'"),
        (calling(call([1])), TypeError, "function.arguments must be text or a mapping, not list"),
        (
            calling(call({"a": [1, float("nan")]})),
            ValueError,
            "messages[0].tool_calls[0].function.arguments['a'][1] is nan",
        ),
        (calling(), ValueError, "messages[0] has no content"),
        (
            {"role": "assistant", "content": "", "reasoning": "a", "thinking": "b"},
            ValueError,
            "messages[0]: `reasoning` and `thinking` contradict",
        ),
    ],
)
def test_faults_are_named_by_their_place(message, error, words):
    with pytest.raises(error) as caught:
        chat_of(message)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("tools", "error", "words"),
    [
        ({"type": "function"}, TypeError, "tools must be a list of mappings, not a mapping"),
        ("f", TypeError, "tools must be a list, not str"),
        ([{}, "f"], TypeError, "tools[1] must be a mapping, not str"),
        ([{"a": {1, 2}}], TypeError, "tools[0]['a'] is of type set"),
    ],
)
def test_faults_of_tools_are_named_by_their_place(tools, error, words):
    with pytest.raises(error) as caught:
        chat_of({"role": "user", "content": "Hi"}, tools=tools)
    assert words in str(caught.value)


TEXT = "<think>Grüße?</think>\n\nLet me look.\n<tool_call>…</tool_call>\n"


def result(**fields: object) -> pb.SequenceResult:
    return pb.SequenceResult(text=TEXT, **fields)


def place(text: str) -> dict[str, int]:
    begin = TEXT.encode().index(text.encode())
    return {"text_begin_byte": begin, "text_end_byte": begin + len(text.encode())}


PARSED = pb.ParsedToolCall(
    call=pb.ToolCall(id="a1b2c3d4e", name="f", arguments_json='{"z": 1, "a": 2}'),
    **place("<tool_call>…</tool_call>"),
)
REASONING = pb.ParsedReasoning(text="Grüße?", **place("<think>Grüße?</think>"))


def test_an_output_as_a_message_can_be_sent_back():
    message = make_message(result(tool_calls=[PARSED], reasoning=REASONING))
    assert message == {
        "role": "assistant",
        "content": "Let me look.",
        "reasoning_content": "Grüße?",
        "tool_calls": [
            {
                "id": "a1b2c3d4e",
                "type": "function",
                "function": {"name": "f", "arguments": '{"z": 1, "a": 2}'},
            }
        ],
    }
    (sent,) = chat_of(message).messages
    assert sent.tool_calls[0] == PARSED.call
    assert sent.reasoning_content == "Grüße?"


def test_an_output_without_parts_is_its_text_unchanged():
    assert make_message(result()) == {"role": "assistant", "content": TEXT}
    assert make_message(pb.SequenceResult()) == {"role": "assistant", "content": ""}


def test_an_output_of_calls_alone_has_no_content():
    parsed = pb.ParsedToolCall(call=PARSED.call, text_end_byte=2)
    message = make_message(pb.SequenceResult(text="{}", tool_calls=[parsed, parsed]))
    assert message["content"] is None
    assert len(message["tool_calls"]) == 2
    assert chat_of(message).messages[0].no_content


def test_a_tool_call_has_its_arguments_parsed_and_its_place():
    converted = convert_tool_call(PARSED)
    assert (converted.id, converted.name) == ("a1b2c3d4e", "f")
    assert list(converted.arguments.items()) == [("z", 1), ("a", 2)]
    there = TEXT.encode()[converted.text_bytes.start : converted.text_bytes.stop]
    assert there.decode() == "<tool_call>…</tool_call>"
