"""Conversations with tools, reasoning and parts, compared with `apply_chat_template`."""

import copy
import json
from functools import cache
from typing import Any

import pytest
from chat_templates import FAMILIES, SPECIAL, TOOLS, WITH_CALLS, Family, make_call
from text_oracles import byte_level
from transformers import PreTrainedTokenizerFast

from whence.requests import generate_request
from whence_server.domain.chat import ChatInput, ChatMessage, ToolCall
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.rpc.conversions import convert_request
from whence_server.text.chat import ChatTemplate, RenderedChat
from whence_server.text.template_arguments import read_arguments, read_tools
from whence_server.text.template_facts import iterates_content, uses_variable

USER = {"role": "user", "content": "How warm is it in Zürich?"}
ANSWER = {"role": "assistant", "content": "It is “warm”."}
ARGUMENTS = {"town": "Zürich </s>", "days": 2**60, "z": [1.0, None, {"b": 1, "a": "<&>"}]}
RESULT = {"role": "tool", "content": "21 °C", "tool_call_id": "call00000", "name": "get_weather"}
PARTS = [{"type": "text", "text": "How warm"}, {"type": "text", "text": "is it? "}]
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
with_calls = pytest.mark.parametrize("family", WITH_CALLS.values(), ids=WITH_CALLS.keys())


@cache
def reference() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(), **SPECIAL)


def theirs(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    tokenizer = reference()
    tokenizer.chat_template = source
    options.setdefault("add_generation_prompt", not options.get("continue_final_message"))
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def ours(source: Any, messages: list[dict[str, Any]], **options: Any) -> RenderedChat:
    """Render plain dicts: through the client, the contract and the server's conversion."""
    request = generate_request(None, {"messages": messages, **options})
    chat = convert_request(request, Limits()).input
    assert isinstance(chat, ChatInput)
    arguments = read_arguments(chat.template_arguments_json)
    template = ChatTemplate(source, SPECIAL)
    return template.render(
        chat.messages, arguments, chat.template_name, read_tools(chat.tools_json)
    )


def calling(family: Family, **fields: Any) -> dict[str, Any]:
    """Return a message with tool calls, whose arguments are objects."""
    calls = [make_call(ARGUMENTS, number) for number in range(family.num_calls)]
    return {"role": "assistant", "tool_calls": calls, "reasoning_content": "Look it up.", **fields}


def for_transformers(family: Family, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with arguments as text, for templates that join them to text."""
    messages = copy.deepcopy(messages)
    for message in messages if family.takes_text else ():
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(ARGUMENTS, ensure_ascii=False)
    return messages


def refusal(source: Any, messages: list[dict[str, Any]], **options: Any) -> tuple[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        ours(source, messages, **options)
    (violation,) = caught.value.violations
    return violation.field, violation.description


@families
def test_a_plain_conversation_is_rendered_as_transformers_does(family: Family) -> None:
    messages = [USER, ANSWER, USER]
    assert ours(family.source, messages).text == theirs(family.source, messages)


@with_calls
@pytest.mark.parametrize("content", [{}, {"content": ""}, {"content": "Let me look."}])
def test_calls_and_results_are_rendered_as_transformers_does(
    family: Family, content: dict[str, str]
) -> None:
    messages = [USER, calling(family, **content), RESULT, ANSWER, USER]
    wanted = theirs(family.source, for_transformers(family, messages), tools=TOOLS)
    assert ours(family.source, messages, tools=TOOLS).text == wanted
    assert "get_weather" in wanted


@with_calls
def test_arguments_as_text_are_rendered_as_the_object_is(family: Family) -> None:
    as_object = [USER, calling(family, content="")]
    as_text = copy.deepcopy(as_object)
    for call in as_text[1]["tool_calls"]:
        call["function"]["arguments"] = json.dumps(ARGUMENTS, ensure_ascii=False)
    assert ours(family.source, as_text).text == ours(family.source, as_object).text


def test_a_template_that_writes_arguments_as_text_writes_the_clients_own() -> None:
    source = "{% for c in messages[-1].tool_calls %}{{ c.function.arguments }}|{{ 'x' ~ c.function.arguments }}{% endfor %}"  # noqa: E501
    text = '{"town":"Bern",  "n": 1.50}'
    calls = [{"role": "assistant", "tool_calls": [make_call(text)]}]
    assert ours(source, calls).text == f"{text}|x{text}"
    assert theirs(source, calls) == f"{text}|x{text}"


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_reaches_every_template_under_each_of_its_names(key: str) -> None:
    message = {"role": "assistant", "content": "21", key: "It is\nsummer."}
    source = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    assert "summer" in ours(source, [message]).text
    for source in (FAMILIES["thinking"].source, "{{ messages[0].thinking }}"):
        assert ours(source, [message]).text == theirs(source, [message])


def test_parts_reach_a_template_that_iterates_over_them() -> None:
    source = FAMILIES["gemma"].source
    messages = [{"role": "user", "content": PARTS}]
    assert ours(source, messages).text == theirs(source, messages)
    assert "How warmis it?" in ours(source, messages).text


def test_parts_are_joined_for_a_template_that_takes_text() -> None:
    for name in ("plain", "qwen", "thinking", "llama"):
        source = FAMILIES[name].source
        joined = theirs(source, [{"role": "user", "content": "How warm\nis it? "}])
        assert ours(source, [{"role": "user", "content": PARTS}]).text == joined


@pytest.mark.parametrize(
    ("loop", "takes"),
    [
        ("{% for p in message.content %}{{ p.text }}{% endfor %}", True),
        ("{% for p in message['content'] | list %}{{ p['text'] }}{% endfor %}", True),
        ("{% set c = message.get('content') %}{% for p in c %}{{ p.text }}{% endfor %}", True),
        (
            "{% macro show(content) %}{% for p in content %}{{ p.text }}{% endfor %}{% endmacro %}",
            True,
        ),
        ("{% set calls = message.content %}{% for c in calls %}{{ c.name }}{% endfor %}", False),
        ("{{ message.content }}{% for p in message.parts %}{{ p.text }}{% endfor %}", False),
    ],
)
def test_templates_that_take_parts_are_known_by_their_loops(loop: str, takes: bool) -> None:
    assert iterates_content(f"{{% for message in messages %}}{loop}{{% endfor %}}") is takes


@pytest.mark.parametrize("field", [True, "content", "reasoning_content", "thinking"])
def test_any_last_text_is_continued_as_transformers_does(field: bool | str) -> None:
    source = FAMILIES["thinking"].source
    final = {"role": "assistant", "content": "It", "reasoning_content": "Summer, and"}
    messages = [USER, final]
    wanted = theirs(source, messages, continue_final_message=field)
    rendered = ours(source, messages, continue_final_message=field)
    assert rendered.text == wanted
    assert rendered.forms.begins_in_reasoning is (field not in {True, "content"})


def test_a_last_part_is_continued_as_transformers_does() -> None:
    source = FAMILIES["gemma"].source
    messages = [USER, {"role": "assistant", "content": PARTS}]
    wanted = theirs(source, messages, continue_final_message=True)
    assert ours(source, messages, continue_final_message=True).text == wanted


def test_a_message_without_the_text_to_continue_is_refused() -> None:
    messages = [USER, {"role": "assistant", "tool_calls": [make_call({})]}]
    for field in (True, "tool_calls", "reasoning_content"):
        where, description = refusal(
            FAMILIES["thinking"].source, messages, continue_final_message=field
        )
        assert where == "chat.template_arguments.continue_final_message"
        assert "to continue" in description


@families
def test_formats_are_known_by_the_template(family: Family) -> None:
    if uses_variable(family.source, "tools"):
        forms = ours(family.source, [USER], tools=TOOLS).forms
        assert (forms.tool_calls, forms.reasoning) == (family.calls, family.reasoning)
    # Without tools there are no calls to look for.
    forms = ours(family.source, [USER]).forms
    assert (forms.tool_calls, forms.reasoning) == ("", family.reasoning)


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [({}, False), ({"enable_thinking": False}, False), ({"open_thinking": True}, True)],
)
def test_a_prompt_that_ends_in_reasoning_is_noticed(
    arguments: dict[str, bool], begins: bool
) -> None:
    rendered = ours(FAMILIES["thinking"].source, [USER], template_arguments=arguments)
    assert rendered.forms.begins_in_reasoning is begins


@pytest.mark.parametrize("name", ["plain", "gemma"])
def test_tools_that_a_template_would_leave_out_are_refused(name: str) -> None:
    field, description = refusal(FAMILIES[name].source, [USER], tools=TOOLS)
    assert field == "chat.tools_json"
    assert "does not use tools" in description
    # An empty list says that there are none; transformers passes it on.
    wanted = theirs(FAMILIES[name].source, [USER], tools=[])
    assert ours(FAMILIES[name].source, [USER], tools=[]).text == wanted


def test_calls_that_a_template_would_leave_out_are_refused() -> None:
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [make_call({})]}]
    field, description = refusal(FAMILIES["plain"].source, messages)
    assert field == "chat.messages[1].tool_calls"
    assert "does not use tool calls" in description


def test_tools_choose_a_template_as_the_template_argument_does() -> None:
    source = {"default": FAMILIES["plain"].source, "tool_use": FAMILIES["qwen"].source}
    rendered = ours(source, [USER], tools=TOOLS)
    assert rendered.template_name == "tool_use"
    assert rendered.text == ours(source, [USER], template_arguments={"tools": TOOLS}).text
    assert ours(source, [USER]).template_name == "default"


def test_tools_twice_are_refused() -> None:
    twice = {"tools": TOOLS, "template_arguments": {"tools": TOOLS}}
    field, description = refusal(FAMILIES["qwen"].source, [USER], **twice)
    assert (field, "set one of them" in description) == ("chat.tools_json", True)


@pytest.mark.parametrize(
    ("text", "field", "part"),
    [
        ("{}", "chat.tools_json", "must be a JSON array of objects, not an object"),
        ("[1]", "chat.tools_json[0]", "must be an object, not a number"),
        ('[{"a": 1, "a": 2}]', "chat.tools_json", "has the key 'a' twice"),
        ("[" * 65, "chat.tools_json", "nests deeper than 64 levels"),
        ("[{]", "chat.tools_json", "is no JSON"),
    ],
)
def test_malformed_tools_are_refused_with_their_place(text: str, field: str, part: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_tools(text)
    (violation,) = caught.value.violations
    assert violation.field == field
    assert part in violation.description


@pytest.mark.parametrize(
    ("message", "field", "part"),
    [
        (
            ChatMessage("assistant", None, (ToolCall("f", "[1]"),)),
            "chat.messages[0].tool_calls[0].arguments_json",
            "must be a JSON object, not an array",
        ),
        (
            ChatMessage("assistant", None, (ToolCall("f"), ToolCall("f", '{"a": NaN}'))),
            "chat.messages[0].tool_calls[1].arguments_json",
            "has NaN",
        ),
        (
            ChatMessage("assistant", None, (ToolCall("f\ud800"),)),
            "chat.messages[0].tool_calls[0].name",
            "lone surrogate",
        ),
        (ChatMessage("user", ("a", "\udc00")), "chat.messages[0].content_parts[1].text", "lone"),
        (ChatMessage("tool", "", tool_call_id="\ud800"), "chat.messages[0].tool_call_id", "lone"),
        (ChatMessage("user", "", name="\ud800"), "chat.messages[0].name", "lone"),
        (
            ChatMessage("assistant", None, reasoning_content="\ud800"),
            "chat.messages[0].reasoning_content",
            "lone",
        ),
    ],
)
def test_faults_of_messages_are_named_by_their_place(
    message: ChatMessage, field: str, part: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ChatTemplate(FAMILIES["qwen"].source, SPECIAL).render([message])
    (violation,) = caught.value.violations
    assert violation.field == field
    assert part in violation.description


def test_a_template_cannot_change_or_leave_the_arguments() -> None:
    messages = [USER, {"role": "assistant", "tool_calls": [make_call({"a": 1})]}]
    arguments = "messages[1].tool_calls[0].function.arguments"
    for attack in (
        f"{arguments}.update({{'b': 2}})",
        f"{arguments}._text",
        f"{arguments}.__class__",
    ):
        field, _ = refusal(f"{{{{ {attack} + 1 }}}}", messages)
        assert field == "chat"
