"""Segments of a context: words, sentences, lines, messages, and the template's own tokens."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from whence_server.explain.segment_units import Unit, find_sentences, find_words
from whence_server.explain.segments import (
    Segment,
    SegmentsError,
    TokenTexts,
    check_segments,
    divide,
    read_texts,
)

PARTS = ("<|im_start|>", "<|im_end|>", "<bos>", "<|start_header_id|>", "<|end_header_id|>")


def texts_of(tokens: Sequence[str]) -> TokenTexts:
    """Return the texts of these tokens, of which `PARTS` are special."""
    text, begins = "", []
    for token in tokens:
        begins.append(len(text))
        text += "" if token in PARTS else token
    return TokenTexts(text, tuple(begins), tuple(token in PARTS for token in tokens))


def show(tokens: Sequence[str], segments: Sequence[Segment]) -> list[str]:
    return ["".join(tokens[segment.start : segment.end]) for segment in segments]


CHATML = [
    *("<|im_start|>", "system", "\n", "Be", " brief", ".", "<|im_end|>", "\n"),
    *(
        "<|im_start|>",
        "user",
        "\n",
        "Ann",
        " has",
        " a",
        " cat",
        ".",
        " Bob",
        " a",
        " d",
        "og",
        ".",
    ),
    *("\n", "Who", " has", " a", " cat", "?", "<|im_end|>", "\n"),
    *("<|im_start|>", "assistant", "\n"),
]


def test_a_chats_template_is_in_no_segment() -> None:
    for contents in (None, ["Be brief.", " Ann has a cat. Bob a dog.\nWho has a cat?\n"]):
        segments, _ = divide(texts_of(CHATML), Unit.WORDS, contents)
        assert show(CHATML, segments) == [
            *("Be", " brief.", "Ann", " has", " a", " cat.", " Bob", " a", " dog."),
            *("Who", " has", " a", " cat?"),
        ]
        segments, _ = divide(texts_of(CHATML), Unit.SENTENCES, contents)
        assert show(CHATML, segments) == [
            *("Be brief.", "Ann has a cat.", " Bob a dog.", "Who has a cat?"),
        ]
        segments, _ = divide(texts_of(CHATML), Unit.MESSAGES, contents)
        assert show(CHATML, segments) == [
            "Be brief.",
            "Ann has a cat. Bob a dog.\nWho has a cat?",
        ]
        segments, _ = divide(texts_of(CHATML), Unit.LINES, contents)
        assert show(CHATML, segments) == [
            *("Be brief.", "Ann has a cat. Bob a dog.\n", "Who has a cat?"),
        ]


def test_contents_tell_a_templates_own_words_apart() -> None:
    # The template added the first message.
    segments, _ = divide(
        texts_of(CHATML), Unit.MESSAGES, ["Ann has a cat. Bob a dog.\nWho has a cat?"]
    )
    assert show(CHATML, segments) == ["Ann has a cat. Bob a dog.\nWho has a cat?"]


def test_headers_between_special_tokens_are_the_templates() -> None:
    tokens = [
        *("<bos>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n", "Who", "?"),
        *("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
    ]
    segments, _ = divide(texts_of(tokens), Unit.TOKENS)
    assert show(tokens, segments) == ["Who", "?"]
    # Without a line break, a role's name is a word of the text.
    tokens = ["<bos>", "user", " names", " count"]
    segments, _ = divide(texts_of(tokens), Unit.WORDS)
    assert show(tokens, segments) == tokens[1:]


def test_few_sentences_are_divided_into_words() -> None:
    segments, unit = divide(texts_of(CHATML))
    assert (len(segments), unit) == (4, Unit.SENTENCES)
    tokens = ["The", " capital", " of", " France", " is"]
    segments, unit = divide(texts_of(tokens))
    assert (show(tokens, segments), unit) == (tokens, Unit.WORDS)


def test_a_token_belongs_to_the_unit_of_its_first_solid_character() -> None:
    tokens = ["One", " ", " ", "two.Three", ".", "  \n", "Four", ".\n\n", "Five", " "]
    segments, _ = divide(texts_of(tokens), Unit.SENTENCES)
    assert show(tokens, segments) == ["One  two.Three.", "Four.\n\n", "Five"]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith met J. Doe. They left.", ["Dr. Smith met J. Doe.", "They left."]),
        ('He said "Stop!" and ran. She did not.', ['He said "Stop!" and ran.', "She did not."]),
        ("Version 3.14 is out... Now what?!", ["Version 3.14 is out...", "Now what?!"]),
        ("a line that\ngoes on\n\nA title\nText", ["a line that\ngoes on", "A title", "Text"]),
        ("我喜欢猫。你呢？好", ["我喜欢猫。", "你呢？", "好"]),
        ("No mark at the end", ["No mark at the end"]),
        (" \n\n ", []),
        ("So do I. Yes.", ["So do I.", "Yes."]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert [text[begin:end] for begin, end in find_sentences(text)] == sentences


def test_words_of_scripts_without_spaces_are_characters() -> None:
    text = "ein Wort, 猫と犬"
    found = [text[begin:end] for begin, end in find_words(text)]
    assert found == ["ein", "Wort,", "猫", "と", "犬"]


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ([(0, 3), (3, 3)], "segments[1] is empty"),
        ([(0, 3), (2, 5)], "segments[1] begins at position 2, before the end of segments[0], 3"),
        ([(4, 5), (0, 3)], "segments[1] begins at position 0, before the end of segments[0], 5"),
        ([(0, 11)], "segments[0] ends at position 11, expected at most 10"),
    ],
)
def test_wrong_segments_are_refused(segments: list[tuple[int, int]], said: str) -> None:
    with pytest.raises(SegmentsError) as refusal:
        check_segments([Segment(*each) for each in segments], 10)
    assert said in str(refusal.value)
    check_segments([Segment(0, 3), Segment(3, 10)], 10)


class _Tokenizer:
    """The tokenizer of a tiny model, with the pieces of the server's."""

    def __init__(self, directory: Path) -> None:
        from whence_server.engines.transformers.describing import read_text_files
        from whence_server.text.tokenizer import TextTokenizer

        self.plain: Any = AutoTokenizer.from_pretrained(directory)
        self.ours = TextTokenizer(read_text_files(self.plain), len(self.plain))


def test_tokens_of_one_character_stay_together(tiny_model: Callable[..., Path]) -> None:
    tokenizer = _Tokenizer(tiny_model("llama"))
    text = "The fox 🦊🦊 jumps, naïve 你好 ok"
    ids = tokenizer.plain(text, add_special_tokens=False).input_ids
    texts = read_texts(tokenizer.ours, ids)
    assert texts.text == text
    segments, _ = divide(texts, Unit.WORDS)
    words = [tokenizer.plain.decode(ids[segment.start : segment.end]) for segment in segments]
    assert words == ["The", " fox", " 🦊🦊", " jumps,", " naïve", " 你", "好", " ok"]
    assert segments[-1].end == len(ids)
    assert all(one.end == other.start for one, other in pairwise(segments))
