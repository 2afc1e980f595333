"""Arguments of chat templates: strict JSON, rendered as `apply_chat_template` does."""

import inspect
import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracles import byte_level
from transformers import PreTrainedTokenizerFast

from whence_server.domain.chat import ChatMessage
from whence_server.domain.errors import InvalidRequestError
from whence_server.text.chat import ChatTemplate
from whence_server.text.strict_json import MAX_DEPTH
from whence_server.text.template_arguments import FIELD, REFUSED, read_arguments

HELLO = (ChatMessage("user", "Hello"),)
SHOW = """{%- for name in ['x', 'tools', 'n'] %}{%- set value = {'x': x, 'tools': tools, 'n': n}[name] %}
{{- value }}|{{ value | tojson }}|{{ value | tojson(indent=2) }}|{{ value | tojson(sort_keys=true) }}
{%- if value is mapping %}{%- for k, v in value.items() %}<{{ k }}={{ v }}>{%- endfor %}{%- endif %}
{%- endfor %}{{ messages[0].content }}"""  # noqa: E501 - a template's white space is output
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Says how it is & will be <soon>",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 64, "enum": ["Zürich", "São Paulo"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 14, "default": 3},
                "above": {"type": "number", "minimum": -273.15, "multipleOf": 0.5},
                "a": {},
            },
            "required": ["city", "days"],
        },
    },
}
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner)
    ),
    max_leaves=12,
)


@cache
def reference() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(), bos_token="<s>")


def theirs(
    source: Any, arguments: dict[str, Any], messages: tuple[ChatMessage, ...] = HELLO
) -> str:
    tokenizer = reference()
    tokenizer.chat_template = source
    conversation = [{"role": m.role, "content": m.content} for m in messages]
    options = {"add_generation_prompt": not arguments.get("continue_final_message"), **arguments}
    return tokenizer.apply_chat_template(conversation, tokenize=False, **options)


def ours(source: Any, text: str, messages: tuple[ChatMessage, ...] = HELLO, name: str = "") -> str:
    template = ChatTemplate(source, {"bos_token": "<s>"})
    return template.render(messages, read_arguments(text), name).text


def fault(text: str) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        read_arguments(text)
    (violation,) = caught.value.violations
    assert violation.field == FIELD
    return violation.description


@pytest.mark.parametrize("indent", [None, 3])
def test_tools_reach_the_template_as_json_has_them(indent: int | None) -> None:
    arguments = {"n": 512, "x": {"b": 1.0, "a": 1, "ü": [2**63, 1e22, -0.0]}, "tools": [TOOL]}
    text = ours(SHOW, json.dumps(arguments, indent=indent))
    assert text == theirs(SHOW, arguments)
    assert "512|512|512|512" in text
    assert "<b=1.0><a=1>" in text


@settings(max_examples=150, deadline=None)
@given(value=JSON, n=JSON)
def test_any_json_renders_as_with_transformers(value: Any, n: Any) -> None:
    arguments = {"x": value, "n": n, "tools": [{"t": value}]}
    assert ours(SHOW, json.dumps(arguments)) == theirs(SHOW, arguments)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "is no JSON: Expecting property name enclosed in double quotes at character 1"),
        ('{"a":1,}', "at character"),
        ('{"a":1} x', "Extra data at character 8"),
        ("{'a':1}", "at character 1"),
        ('{"a":"\n"}', "control character at character 6"),
        ("[]", "must be a JSON object, not an array"),
        ("3", "not a number"),
        ("null", "not null"),
        (" ", "is no JSON"),
        ('{"a":1,"b":{"c":1,"c":1}}', "the key 'c' twice"),
        ('{"a":1,"\\u0061":2}', "the key 'a' twice"),
        ('{"a":NaN}', "has NaN at character 5"),
        ('{"a":[1,-Infinity]}', "has -Infinity at character 8"),
        ('{"a":1e999}', "1e999, which is beyond a double's range"),
        ('{"a":' + "9" * 5000 + "}", "an integer of 5000 digits; at most 1000"),
        ('{"a":' * 64 + "1" + "}" * 64, "deeper than 64"),
        ('{"a":' + "[" * 100_000, "deeper than 64 levels at character 68"),
        ('{"a":"\\ud800"}', "lone surrogate"),
        ('{"\\udfff":1}', "lone surrogate"),
        ('{"a":"' + '\\"' * 500_000, "Unterminated string"),
    ],
)
def test_malformed_json_is_refused_with_its_position(text: str, part: str) -> None:
    if text.startswith('{"a":{"a":'):  # one level more than is taken
        text = '{"a":' + text + "}"
    assert part in fault(text)


def test_unusual_valid_json_is_accepted() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    odd = {"a": "NaN [[[[ -Infinity \\", "b": deep, "c": {"a": {"a": 1}}, "": 0, "d": "\U0001f600"}
    assert read_arguments(json.dumps(odd)) == odd
    assert read_arguments("") == {}
    assert list(read_arguments('{"z":1,"a":2,"m":3}')) == ["z", "a", "m"]


HONOURED = {"tools", "documents", "add_generation_prompt", "continue_final_message"}


def test_every_parameter_of_apply_chat_template_is_honoured_or_refused_by_name() -> None:
    parameters = inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters
    named = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    # Two more collide with parameters of what transformers calls with the variables.
    assert named == HONOURED | (set(REFUSED) - {"messages", "conversations"})
    for name in REFUSED:
        with pytest.raises(InvalidRequestError, match=f"has `{name}`, which"):
            read_arguments(json.dumps({name: False}))


@pytest.mark.parametrize("name", ["messages", "conversations", "self"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(TypeError):
        theirs(SHOW, {name: 1})
    assert name in REFUSED


@pytest.mark.parametrize("name", ["kwargs", "value", "loop", "bos_token", "range", "args", "text"])
def test_any_other_name_is_a_variable(name: str) -> None:
    source = f"{{{{ {name} }}}}"
    assert ours(source, json.dumps({name: 7})) == theirs(source, {name: 7}) == "7"


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize("value", ["x", [1], 3, [None], [[]], {"a": 1}])
def test_tools_and_documents_are_lists_of_objects(name: str, value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        theirs("x", {name: value})
    with pytest.raises(InvalidRequestError, match=f"`{name}` must be an array of objects"):
        read_arguments(json.dumps({name: value}))


TRIMS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</>{% endfor %}{{ add_generation_prompt }}"  # noqa: E501 - as above
KEEPS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"  # noqa: E501
CUTS = "{% for m in messages %}{{ m.content[:5] }}{% endfor %}"
DROPS = "{{ messages[0].content }}"
TWICE = "{{ messages[-1].content }} and {{ messages[-1].content }}!"
NO_FIELD = "{% for m in messages %}{{ m.values() | list | last }}{% endfor %}"


@pytest.mark.parametrize("source", [TRIMS, KEEPS, CUTS, DROPS, TWICE, NO_FIELD])
@pytest.mark.parametrize("final", ["I think", " so \n", "", "trailing  ", "a<b", "long enough"])
@pytest.mark.parametrize("wanted", [True, "content", "role", "reasoning_content", 1, False, "", 0])
def test_the_final_message_is_continued_as_transformers_does(
    source: str, final: str, wanted: object
) -> None:
    messages = (ChatMessage("user", "Well?"), ChatMessage("assistant", final))
    arguments = {"continue_final_message": wanted}
    try:
        expected: str | None = theirs(source, arguments, messages)
    except ValueError:
        expected = None
    if expected is None:
        with pytest.raises(InvalidRequestError, match="continue_final_message"):
            ours(source, json.dumps(arguments), messages)
    else:
        assert ours(source, json.dumps(arguments), messages) == expected


def test_continue_final_message_contradicts_add_generation_prompt() -> None:
    arguments = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(ValueError, match="not compatible"):
        theirs(KEEPS, arguments)
    with pytest.raises(InvalidRequestError, match="contradict"):
        ours(KEEPS, json.dumps(arguments))


NAMED = {
    "default": "default: {{ tools | tojson }}",
    "tool_use": "tool_use: {{ tools | tojson }}",
    "rag": "rag: {{ documents | tojson }} {{ tools }}",
}


@pytest.mark.parametrize("source", [NAMED, {"default": "d", "rag": "r"}, "single {{ tools }}"])
@pytest.mark.parametrize("arguments", [{}, {"tools": []}, {"tools": [TOOL]}, {"tools": None}])
@pytest.mark.parametrize("name", ["", "default", "rag", "tool_use"])
def test_template_is_chosen_as_in_transformers(
    source: Any, arguments: dict[str, Any], name: str
) -> None:
    known = {"default": source} if isinstance(source, str) else source
    if name and name not in known:
        with pytest.raises(InvalidRequestError, match=r"chat\.template_name: is .*'default'"):
            ours(source, json.dumps(arguments), name=name)
        return
    by_name = {"chat_template": known[name]} if name else {}
    expected = theirs(source, {**arguments, **by_name})
    assert ours(source, json.dumps(arguments), name=name) == expected


def test_several_templates_without_a_default_need_a_name() -> None:
    source = {"tool_use": "t", "rag": "r"}
    with pytest.raises(ValueError, match="no default"):
        theirs(source, {})
    with pytest.raises(
        InvalidRequestError, match="none is the default; they are 'rag', 'tool_use'"
    ):
        ours(source, "")
    assert ours(source, '{"tools":[]}') == theirs(source, {"tools": []}) == "t"
    assert ours(source, "", name="rag") == "r"


def test_templates_can_call_dict_fromkeys() -> None:
    source = "{{ dict.fromkeys(['a', 'b'], 0) }}{{ dict(a=1) }}"
    assert ours(source, "") == theirs(source, {})


def test_long_template_error_is_truncated() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ours("{{ raise_exception(messages[0].content) }}", "", (ChatMessage("user", "x" * 10**5),))
    assert len(str(caught.value)) < 1_000


def test_template_error_is_valid_unicode() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        ours("{{ raise_exception('bad \\ud800 half') }}", "")
    assert str(caught.value) == "chat.messages: refused by the chat template: bad \\ud800 half"
