"""Tool calls and reasoning of outputs: read where they fit the format, text where they do not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_templates import SPECIAL, WITH_CALLS, Family, cut_output, make_call
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_parsing import parse_response

from whence_server.domain.chat import ChatMessage, OutputForms, ToolCall
from whence_server.text.chat import ChatTemplate
from whence_server.text.json_calls import MAX_CALLS
from whence_server.text.marked_text import MarkedText
from whence_server.text.output_formats import CALL_FORMATS, REASONING_FORMATS
from whence_server.text.output_reading import MAX_CHARACTERS, OutputParts, read_output

HERMES = OutputForms("hermes", "think")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "Infinity" not in json.dumps(value))
ARGUMENTS = st.dictionaries(TEXT, JSON, max_size=4)
MARKS = [
    mark
    for form in (*CALL_FORMATS, *REASONING_FORMATS)
    for name in ("begin", "end", "prefix", "name_begin", "name_end", "id_begin", "group_begin")
    if (mark := getattr(form, name, ""))
]
PIECES = [*MARKS, "[", "]", "{", "}", '"name"', '"arguments"', ":", ",", '"f"', " ", "\n", "é", "1"]
QWEN = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
        },
        "content": {},
    },
}
"""Qwen's format for transformers' own parser, as `transformers serve` has it."""


def read(output: str, forms: OutputForms = HERMES, special: Any = ()) -> OutputParts:
    return read_output(output, special, forms, "seed")


def names_of(parts: OutputParts) -> list[tuple[str, Any]]:
    return [(p.call.name, json.loads(p.call.arguments_json)) for p in parts.tool_calls]


def cut(output: str, part: Any) -> str:
    return output.encode()[part.begin_byte : part.end_byte].decode()


@pytest.mark.parametrize("family", WITH_CALLS.values(), ids=WITH_CALLS.keys())
@settings(max_examples=40, deadline=None)
@given(arguments=st.lists(ARGUMENTS, min_size=1, max_size=3))
def test_what_a_template_writes_is_read_again(
    family: Family, arguments: list[dict[str, Any]]
) -> None:
    arguments = arguments[: family.num_calls]
    calls = tuple(
        ToolCall("get_weather", json.dumps(each, ensure_ascii=False), f"call0000{number}")
        for number, each in enumerate(arguments)
    )
    message = ChatMessage("assistant", "", calls, reasoning_content="Hm.")
    talk = [ChatMessage("user", "Hi"), message]
    template = ChatTemplate(family.source, SPECIAL)
    output = cut_output(template.render(talk, {"add_generation_prompt": False}).text, family)
    parts = read(output, OutputForms(family.calls, family.reasoning))
    assert names_of(parts) == [("get_weather", each) for each in arguments]
    assert len({parsed.call.id for parsed in parts.tool_calls}) == len(arguments)
    assert "get_weather" not in _without(output, parts)


def _without(output: str, parts: OutputParts) -> str:
    data = bytearray(output.encode())
    for parsed in reversed(parts.tool_calls):
        del data[parsed.begin_byte : parsed.end_byte]
    return data.decode()


@given(
    reasoning=st.none() | st.text("ab \n{}", max_size=8).filter(str.strip),
    content=st.text("ab é{}", max_size=8),
    arguments=st.lists(ARGUMENTS, max_size=3),
)
def test_a_well_formed_output_is_read_as_transformers_reads_it(
    reasoning: str | None, content: str, arguments: list[dict[str, Any]]
) -> None:
    output = "" if reasoning is None else f"<think>\n{reasoning}\n</think>\n\n"
    output += content
    for each in arguments:
        call = {"name": "f", "arguments": each}
        output += f"\n<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
    theirs = parse_response(output, QWEN, prefix="")
    parts = read(output)
    assert names_of(parts) == [
        (call["name"], call["arguments"]) for call in theirs.get("tool_calls", ())
    ]
    assert (parts.reasoning and parts.reasoning.text) == theirs.get("reasoning_content")


@settings(max_examples=300)
@given(
    output=st.lists(st.sampled_from(PIECES) | TEXT, max_size=25).map("".join),
    special=st.lists(st.tuples(st.integers(0, 60), st.sampled_from(MARKS)), max_size=4),
    calls=st.sampled_from(["", *(form.name for form in CALL_FORMATS)]),
    reasoning=st.sampled_from(["", *(form.name for form in REASONING_FORMATS)]),
    begins=st.booleans(),
)
def test_any_output_is_read_without_a_fault(
    output: str, special: list[tuple[int, str]], calls: str, reasoning: str, begins: bool
) -> None:
    forms = OutputForms(calls, reasoning, begins)
    parts = read(output, forms, sorted(special))
    assert parts == read(output, forms, sorted(special))
    length, last = len(output.encode()), 0
    if parts.reasoning is not None:
        assert 0 <= parts.reasoning.begin_byte <= parts.reasoning.end_byte <= length
        last = parts.reasoning.end_byte
    for parsed in parts.tool_calls:
        assert last <= parsed.end_byte <= length
        assert 0 <= parsed.begin_byte <= parsed.end_byte
        assert isinstance(json.loads(parsed.call.arguments_json), dict)
        cut(output, parsed)
        last = parsed.begin_byte


@pytest.mark.parametrize(
    "output",
    [
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": []}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1, "a": 2}}</tool_call>',
        '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1e999}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5_000 + "}}</tool_call>",
        '<tool_call>{"name": "f", "arguments": ' + '{"a": ' * 70 + "1" + "}" * 71 + "</tool_call>",
        '<tool_call>{"name": "f", "arguments": ' + "[" * 100_000,
        '<tool_call>{"name": "f", "arguments": {}} and more</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": "cut',
        "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
        "<tool_call>[]</tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>",
    ],
)
def test_a_malformed_call_stays_text(output: str) -> None:
    assert read(output) == OutputParts()
    good = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    (parsed,) = read(output + good).tool_calls
    assert (parsed.call.name, cut(output + good, parsed)) == ("g", good)


def test_arguments_are_the_text_that_the_model_wrote() -> None:
    written = '{"b":1.50,  "a": [1,2 ], "n": 12345678901234567890}'
    output = f'Grüße\n<tool_call>\n{{"arguments": {written}, "name": "f"}}\n</tool_call> Bye'
    (parsed,) = read(output).tool_calls
    assert parsed.call.arguments_json == written
    assert cut(output, parsed).startswith("<tool_call>")
    assert cut(output, parsed).endswith("</tool_call>")


@pytest.mark.parametrize("end", ["", "<", "</tool_c", "\n", "\n</tool"])
def test_the_last_mark_may_be_cut(end: str) -> None:
    output = '<tool_call>\n{"name": "f", "arguments": {}}' + end
    (parsed,) = read(output).tool_calls
    assert cut(output, parsed) == output


def test_arguments_written_as_a_text_are_read_as_the_object() -> None:
    output = '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
    (parsed,) = read(output).tool_calls
    assert parsed.call.arguments_json == '{"a": 1}'


def test_ids_are_the_models_own_or_follow_from_the_place() -> None:
    own = '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}]'
    forms = OutputForms("mistral")
    (parsed,) = read(own, forms).tool_calls
    assert parsed.call.id == "abcdefghi"
    without = '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "f", "arguments": {}}]'
    first, second = (parsed.call.id for parsed in read(without, forms).tool_calls)
    assert first != second
    assert {len(first), len(second)} == {9}
    assert first.isalnum()
    assert read_output(without, (), forms, "other").tool_calls[0].call.id != first


def test_marks_that_are_special_tokens_are_seen_and_have_no_bytes() -> None:
    output = 'Öl?get_weather{"a": 1}'
    special = [(4, "[TOOL_CALLS]"), (15, "[ARGS]"), (23, "</s>")]
    (parsed,) = read(output, OutputForms("mistral_named"), special).tool_calls
    assert (parsed.call.name, parsed.call.arguments_json) == ("get_weather", '{"a": 1}')
    assert cut(output, parsed) == 'get_weather{"a": 1}'
    assert MarkedText(output, special).text == 'Öl?[TOOL_CALLS]get_weather[ARGS]{"a": 1}'


@given(output=st.text(max_size=20), places=st.lists(st.integers(0, 90), max_size=5).map(sorted))
def test_places_in_a_text_with_special_tokens_are_bytes_of_the_output(
    output: str, places: list[int]
) -> None:
    output = output.encode(errors="replace").decode()
    marked = MarkedText(output, [(place, "<x>") for place in places])
    assert marked.text.replace("<x>", "") == output.replace("<x>", "")
    counted = [marked.count_output_bytes(place) for place in range(len(marked.text) + 1)]
    assert counted == sorted(counted)
    assert counted[-1] == len(output.encode())
    for count in counted:
        output.encode()[:count].decode()


def test_an_output_that_is_a_call_as_a_whole_has_no_other_text() -> None:
    call = '{"name": "f", "parameters": {"a": 1}}'
    forms = OutputForms("llama")
    for output in (call, f"<|python_tag|>{call}", f" {call}\n", f"{call}; {call}"):
        parts = read(output, forms)
        assert names_of(parts)[0] == ("f", {"a": 1})
        assert "".join(cut(output, parsed) for parsed in parts.tool_calls) == output
    for output in (f"Sure: {call}", f"{call} is the call", call[:-1], "<|python_tag|>print(1)"):
        assert read(output, forms) == OutputParts()


@pytest.mark.parametrize(
    ("output", "begins", "text", "place"),
    [
        ("<think>\nWhy?\n</think>\n\nSo.", False, "Why?", "<think>\nWhy?\n</think>"),
        ("\n<think>a</think>", False, "a", "<think>a</think>"),
        ("Why?\n</think>\n\nSo.", True, "Why?", "Why?\n</think>"),
        ("<think>\ncut off", False, "cut off", "<think>\ncut off"),
        ("cut off", True, "cut off", "cut off"),
        ("<think>\n\n</think>\n\nSo.", False, "", "<think>\n\n</think>"),
    ],
)
def test_reasoning_comes_first(output: str, begins: bool, text: str, place: str) -> None:
    reasoning = read(output, OutputForms("hermes", "think", begins)).reasoning
    assert reasoning is not None
    assert (reasoning.text, cut(output, reasoning)) == (text, place)


@pytest.mark.parametrize("output", ["So. <think>no</think>", "So.</think>", "", "<think>"])
def test_text_before_a_mark_is_no_reasoning(output: str) -> None:
    assert read(output).reasoning is None


def test_a_call_inside_of_reasoning_is_no_call() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    output = f"<think>I could {call}</think>{call}"
    (parsed,) = read(output).tool_calls
    assert parsed.begin_byte == len(f"<think>I could {call}</think>")


def test_marks_of_a_group_belong_to_its_calls() -> None:
    call = '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'
    group = f"<｜tool▁calls▁begin｜>{call}{call}<｜tool▁calls▁end｜>"
    output = f"I see.{group}"
    parts = read(output, OutputForms("deepseek_v3.1"))
    assert "".join(cut(output, parsed) for parsed in parts.tool_calls) == group


def test_nothing_is_looked_for_without_a_format_or_in_an_endless_text() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert read(call, OutputForms()) == OutputParts()
    assert read(call + " " * MAX_CHARACTERS) == OutputParts()
    assert len(read(call * (MAX_CALLS + 5)).tool_calls) == MAX_CALLS
    array = ",".join(['{"name": "f", "arguments": {}}'] * (MAX_CALLS + 1))
    assert read(f"<tool_call>[{array}]</tool_call>") == OutputParts()


def test_every_format_is_documented_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chats.md").read_text(encoding="utf-8")
    table = page.partition("| format |")[2].partition("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    documented = re.findall(r"`(.+?)`", "".join(cells))
    assert sorted(documented) == sorted(form.name for form in CALL_FORMATS)
    assert all(f"`{form.name}`" in page for form in REASONING_FORMATS)


def test_a_call_that_was_read_can_be_sent_back() -> None:
    family = WITH_CALLS["mistral"]
    output = '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]'
    (parsed,) = read(output, OutputForms("mistral")).tool_calls
    sent = make_call(json.loads(parsed.call.arguments_json), name="f")
    talk = [ChatMessage("user", "Hi"), ChatMessage("assistant", None, (parsed.call,))]
    rendered = ChatTemplate(family.source, SPECIAL).render(talk).text
    assert json.dumps(sent["function"])[:-1] in rendered
