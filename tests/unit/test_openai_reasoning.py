"""Reasoning in OpenAI's API: a stream has the parts that are read from the whole output."""

from itertools import accumulate
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.v1.generation_pb2 import (
    ChatRecord,
    ParsedReasoning,
    ParsedToolCall,
    SequenceResult,
    ToolCall,
)
from whence.v1.step_pb2 import Step
from whence_server.domain.chat import OutputForms
from whence_server.http.openai.output_parts import SequenceParts, get_content
from whence_server.text.output_reading import read_output

NAMES = {0: "", 1: "[THINK]", 2: "[/THINK]", 3: "<|odd|>", 4: "[TOOL_CALLS]"}
CALL = '[TOOL_CALLS][{"name": "weather", "arguments": {}}]'


class Tokenizer:
    """Tokenizer of a few special tokens; all other text is of token 0."""

    def is_special(self, token_id: int) -> bool:
        return token_id > 0

    def get_token_text(self, token_id: int) -> str:
        return NAMES[token_id]

    def list_vocabulary(self) -> list[bytes]:
        return [name.encode() for name in NAMES.values()]


class Streamed(NamedTuple):
    """Parts of an output: as they stream, and as the record has them."""

    reasoning: str
    content: str
    first_content: str
    """Content that was sent before the output's end."""
    result: SequenceResult
    num_reasoning_steps: int


def stream(pieces: list[str | int], chat: ChatRecord) -> Streamed:
    """Stream an output's pieces, each a text or a special token."""
    texts = [piece if isinstance(piece, str) else "" for piece in pieces]
    ends = list(accumulate(len(text.encode()) for text in texts))
    special = [
        (end, NAMES[piece])
        for piece, end in zip(pieces, ends, strict=True)
        if isinstance(piece, int)
    ]
    forms = OutputForms(chat.tool_call_format, chat.reasoning_format, chat.begins_in_reasoning)
    found = read_output("".join(texts), special, forms, "x")
    result = SequenceResult(
        text="".join(texts),
        tool_calls=[
            ParsedToolCall(
                call=ToolCall(name=parsed.call.name),
                text_begin_byte=parsed.begin_byte,
                text_end_byte=parsed.end_byte,
            )
            for parsed in found.tool_calls
        ],
    )
    if found.reasoning is not None:
        begin, end = found.reasoning.begin_byte, found.reasoning.end_byte
        told = ParsedReasoning(text=found.reasoning.text, text_begin_byte=begin, text_end_byte=end)
        result.reasoning.CopyFrom(told)
    parts = SequenceParts(chat, Tokenizer())
    pushed = [
        parts.push(Step(text=text, token_id=piece if isinstance(piece, int) else 0))
        for piece, text in zip(pieces, texts, strict=True)
    ]
    rest = parts.finish(result)
    first = "".join(part.content for part in pushed)
    return Streamed(
        "".join(part.reasoning for part in pushed) + rest.reasoning,
        first + rest.content,
        first,
        result,
        parts.num_reasoning_steps,
    )


THINK = ChatRecord(reasoning_format="think")
BEGUN = ChatRecord(reasoning_format="think", begins_in_reasoning=True)
MAGISTRAL = ChatRecord(reasoning_format="magistral", tool_call_format="mistral")


@pytest.mark.parametrize(
    ("chat", "output", "reasoning", "content"),
    [
        (THINK, "\n<think>\nIt is 4.\n</think>\n\nFour.", "It is 4.", "Four."),
        (BEGUN, "It is 4.\n</think>\n\nFour.", "It is 4.", "Four."),
        (BEGUN, "It is 4, as", "It is 4, as", ""),
        (THINK, "Four. <think>no</think>", "", "Four. <think>no</think>"),
        (THINK, "<think>\n\n</think>\n\nFour.", "", "Four."),
        (THINK, "<think>", "", "<think>"),
        (THINK, " <thin", "", " <thin"),
        (ChatRecord(), "<think>a</think>b", "", "<think>a</think>b"),
    ],
)
def test_an_output_is_divided_however_it_is_cut(
    chat: ChatRecord, output: str, reasoning: str, content: str
) -> None:
    for size in (1, 3, len(output)):
        pieces = [output[at : at + size] for at in range(0, len(output), size)]
        streamed = stream(pieces, chat)
        assert (streamed.reasoning, streamed.content) == (reasoning, content)
        assert (streamed.result.reasoning.text, get_content(streamed.result)) == (
            reasoning,
            content,
        )


def test_marks_may_be_special_tokens_without_text() -> None:
    pieces = [1, "Hm", "m.", 3, " ok", 2, " Look", "ing ", 4, '[{"name": "weather", "arguments"']
    pieces += [": {}}]"]
    streamed = stream(pieces, MAGISTRAL)
    assert streamed.reasoning == "Hmm.<|odd|> ok"
    assert streamed.first_content == "Looking "
    assert streamed.content == "Looking "
    assert [parsed.call.name for parsed in streamed.result.tool_calls] == ["weather"]
    assert streamed.num_reasoning_steps == 6


def test_a_call_within_reasoning_is_none() -> None:
    streamed = stream([1, CALL, " ", 2, "Done", "."], MAGISTRAL)
    assert streamed.reasoning == CALL
    # It is no reason to hold back the answer.
    assert streamed.first_content == "Done."
    assert not streamed.result.tool_calls


PIECES = st.lists(
    st.one_of(
        st.sampled_from(sorted(NAMES)[1:]),
        st.sampled_from(["[THINK]", "[/THINK]", "[/THI", "NK]", CALL, "[TOOL", "_CALLS]", "[{"]),
        st.text("a \n[é", min_size=1, max_size=3),
    ),
    max_size=12,
)


@given(PIECES, st.booleans())
def test_streamed_parts_are_those_on_record(pieces: list[str | int], begun: bool) -> None:
    chat = ChatRecord(
        reasoning_format="magistral", tool_call_format="mistral", begins_in_reasoning=begun
    )
    streamed = stream(pieces, chat)
    assert streamed.reasoning == streamed.result.reasoning.text
    assert streamed.content == get_content(streamed.result)
