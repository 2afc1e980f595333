"""Messages of an upstream, divided, cut and joined."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_upstream import token

from whence_server.domain.chat import ToolCall
from whence_server.engines.upstream.exchange import UpstreamCandidate, UpstreamToken
from whence_server.engines.upstream.tool_calls import MAX_CALLS, CallPieces
from whence_server.engines.upstream.translate import divide_text, find_token


@given(st.lists(st.text(max_size=4), min_size=1, max_size=6), st.text(max_size=8))
def test_the_parts_of_a_text_join_to_it(texts: list[str], text: str) -> None:
    tokens = [UpstreamToken(it) for it in texts]
    assert "".join(divide_text(text, tokens)) == text
    assert divide_text("".join(texts), tokens) == texts


def test_a_text_that_was_cut_at_a_stop_string_leaves_with_the_tokens_that_it_is_of() -> None:
    tokens = [UpstreamToken("one"), UpstreamToken(" ST"), UpstreamToken("OP")]
    assert divide_text("one", tokens) == ["one", "", ""]


def test_half_a_character_leaves_with_the_token_that_completes_it() -> None:
    tokens = [UpstreamToken("\ufffd"), UpstreamToken("\ufffd")]
    assert divide_text("é", tokens) == ["", "é"]


def test_the_chosen_token_is_found_by_its_id_or_by_text_and_logprob() -> None:
    by_id = token(" a", 5)
    assert find_token(by_id, (UpstreamCandidate(" a", -0.5, 4), *by_id.candidates)) == 1
    # Two ids can have the same text.
    table = (UpstreamCandidate("a", -0.1), UpstreamCandidate("a", -0.5))
    assert find_token(UpstreamToken("a", logprob=-0.5), table) == 1
    assert find_token(UpstreamToken("b", logprob=-0.5), table) is None


def test_pieces_of_calls_are_joined_by_their_index() -> None:
    calls = CallPieces()
    calls.add(_dump(1, "b", "second", "{}"))
    calls.add(_dump(0, "a", "first", '{"x"'))
    calls.add(_dump(0, None, None, ":1}"))
    assert calls.list_calls() == (ToolCall("first", '{"x":1}', "a"), ToolCall("second", "{}", "b"))


def test_arguments_that_are_an_object_become_its_text() -> None:
    calls = CallPieces()
    calls.add(json.dumps([{"function": {"name": "f", "arguments": {"x": 1}}}]))
    assert calls.list_calls() == (ToolCall("f", '{"x": 1}', ""),)


@pytest.mark.parametrize("text", ["{}", "[1]", '[{"function": 1}]', '[{"index": "0"}]', "["])
def test_calls_of_another_form_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        CallPieces().add(text)


def test_the_number_of_calls_is_bounded() -> None:
    calls = CallPieces()
    for index in range(MAX_CALLS + 5):
        calls.add(_dump(index, "", "f", "{}"))
    assert len(calls.list_calls()) == MAX_CALLS


def _dump(index: int, call_id: str | None, name: str | None, arguments: str) -> str:
    function = {"name": name, "arguments": arguments}
    return json.dumps([{"index": index, "id": call_id, "function": function}])
