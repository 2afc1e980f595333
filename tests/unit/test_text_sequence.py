"""Incremental text against the tokenizer's own decode of all ids at once.

Byte tokens that are not valid UTF-8 are the exception: see `text_oracles.decoded`.
"""

from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from text_oracles import FAMILIES, PADDING, decoded, stopped
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import StopStringCriteria

from whence_server.domain.model import TextFiles
from whence_server.text.sequence import Piece
from whence_server.text.tokenizer import TextTokenizer

families = pytest.mark.parametrize("family", FAMILIES)
byte_fallbacks = pytest.mark.parametrize(
    "family", ["byte_fallback", "byte_fallback_bpe", "strip_three"]
)
STOPS = st.lists(st.text(min_size=1, max_size=5), max_size=4).map(tuple)


@cache
def oracle(family: str) -> Tokenizer:
    return FAMILIES[family]()


@cache
def text_tokenizer(family: str) -> TextTokenizer:
    tokenizer = oracle(family)
    files = TextFiles(tokenizer.to_str(), None, {})
    return TextTokenizer(files, tokenizer.get_vocab_size() + PADDING)


@cache
def both(family: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=oracle(family))


@st.composite
def token_ids(draw: st.DrawFn, family: str) -> list[int]:
    """Generate ids of a text, any ids (padding and special ones too), or runs of byte tokens."""
    tokenizer = oracle(family)
    size = tokenizer.get_vocab_size() + PADDING
    text = st.text(max_size=12).map(lambda t: tokenizer.encode(t).ids)
    anything = st.lists(st.integers(0, size - 1), max_size=12)
    # Where the byte tokens are in all these vocabularies, and special tokens before them.
    raw = st.lists(st.integers(0, min(size, 262) - 1), max_size=8)
    parts = draw(st.lists(text | anything | raw, max_size=4))
    return [token_id for part in parts for token_id in part]


def push_all(family: str, ids: list[int], stops: tuple[str, ...] = ()) -> list[Piece]:
    """Pushes until the end, and checks what holds at every step."""
    sequence = text_tokenizer(family).make_sequence_text(stops)
    pieces: list[Piece] = []
    for index, token_id in enumerate(ids):
        piece = sequence.push(token_id, last=index == len(ids) - 1)
        assert piece.begin_byte == (pieces[-1].end_byte if pieces else 0)
        assert piece.end_byte >= piece.begin_byte
        pieces.append(piece)
        assert sequence.text == "".join(p.text for p in pieces)
        assert piece.end_byte >= len(sequence.text.encode())
        if piece.stop is not None:
            break
    return pieces


@families
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_join_to_the_tokenizers_own_decode(family: str, data: st.DataObject) -> None:
    ids = data.draw(token_ids(family))
    pieces = push_all(family, ids)
    assert "".join(p.text for p in pieces) == decoded(oracle(family), ids)


@byte_fallbacks
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_valid_runs_of_byte_tokens_are_the_tokenizers_own_decode(
    family: str, data: st.DataObject
) -> None:
    characters = st.text(max_size=6).map(lambda text: [3 + byte for byte in text.encode()])
    anything = st.integers(259, oracle(family).get_vocab_size() - 1).map(lambda i: [i])
    parts = data.draw(st.lists(characters | anything, max_size=8))
    ids = [token_id for part in parts for token_id in part]
    pieces = push_all(family, ids)
    assert "".join(p.text for p in pieces) == oracle(family).decode(ids, skip_special_tokens=True)


@byte_fallbacks
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_character_is_returned_with_its_last_byte(family: str, data: st.DataObject) -> None:
    before = data.draw(token_ids(family))
    character = data.draw(st.characters(exclude_categories=["Cs"]))
    tokens = [oracle(family).token_to_id("a"), *(3 + byte for byte in character.encode())]
    texts = [p.text for p in push_all(family, [*before, *tokens, tokens[0]])]
    assert texts[-len(tokens) :] == [""] * (len(tokens) - 2) + [character, "a"]


@byte_fallbacks
def test_a_stop_string_of_three_emojis_stops_at_its_last_byte(family: str) -> None:
    stop = "😀😃👩"
    ids = [3 + byte for byte in f"é{stop}é".encode()]
    pieces = push_all(family, ids, (stop,))
    assert "".join(p.text for p in pieces) == "é"
    assert len(pieces) == len(f"é{stop}".encode())
    assert pieces[-1].stop == stop


@byte_fallbacks
def test_returned_text_stays_if_a_byte_run_becomes_malformed(family: str) -> None:
    ids = [3 + byte for byte in "é😀".encode() + b"\xf0\x9f" + "é".encode() + b"\xff"]
    pieces = push_all(family, ids)
    assert "".join(p.text for p in pieces) == "é😀\ufffd\ufffdé\ufffd"
    assert text_tokenizer(family).decode(ids) == "é😀\ufffd\ufffdé\ufffd"
    # The tokenizer's own, which is known only at the run's end.
    assert oracle(family).decode(ids) == "\ufffd" * len(ids)


@families
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_text_ends_before_the_first_completed_stop(family: str, data: st.DataObject) -> None:
    ids = data.draw(token_ids(family))
    whole = oracle(family).decode(ids, skip_special_tokens=data.draw(st.booleans()))
    stops = data.draw(STOPS)
    if whole:
        begin = data.draw(st.integers(0, len(whole) - 1))
        stops += (whole[begin : begin + data.draw(st.integers(1, 6))],)
    unstopped = [p.text for p in push_all(family, ids)]
    num_tokens, expected, stop = stopped(oracle(family), ids, unstopped, stops)
    pieces = push_all(family, ids, stops)
    assert "".join(p.text for p in pieces) == expected
    assert [p.stop for p in pieces if p.stop is not None] == ([stop] if stop else [])
    # It ends with the token that completes the stop, not later.
    assert len(pieces) == num_tokens


@pytest.mark.parametrize(
    "family",
    ["byte_level", "byte_fallback", "byte_fallback_bpe", "strip_three", "metaspace"],
)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_stops_with_the_token_that_transformers_stops_with(
    family: str, data: st.DataObject
) -> None:
    # Ids without a token end a match there, and add nothing to the text here.
    size = oracle(family).get_vocab_size()
    ids = [token_id for token_id in data.draw(token_ids(family)) if token_id < size]
    whole = oracle(family).decode(ids, skip_special_tokens=False)
    if not whole:
        return
    begin = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[begin : begin + data.draw(st.integers(1, 8))]
    # U+FFFD is text here, and only bytes there.
    if "\ufffd" in stop:
        return
    criteria = StopStringCriteria(both(family), [stop])
    lengths = range(1, len(ids) + 1)
    stopping = (n for n in lengths if criteria(torch.tensor([ids[:n]]), None))
    assert len(push_all(family, ids, (stop,))) == next(stopping, len(ids))


@pytest.mark.parametrize(
    ("stop", "output", "num_tokens"),
    [
        ("<|end|>", "ac", 3),
        ("c<|end|>", "a", 3),
        ("<|end|>b", "ac", 4),
        ("ac<|end|>b", "", 4),
        ("d|>b", "ac", 4),
        ("<|end|></s>", "acbd", 7),
        # Not beside each other where the special token is seen.
        ("cb", "acbd", 7),
    ],
)
def test_a_stop_string_may_hold_special_tokens(stop: str, output: str, num_tokens: int) -> None:
    tokens = ["a", "c", "<|end|>", "b", "d", "<|end|>", "</s>"]
    pieces = push_all("byte_level", [oracle("byte_level").token_to_id(t) for t in tokens], (stop,))
    assert "".join(p.text for p in pieces) == output
    assert len(pieces) == num_tokens
    assert pieces[-1].stop == (None if stop == "cb" else stop)


def test_text_is_held_only_while_a_special_token_may_complete_a_stop() -> None:
    token_id = oracle("byte_level").token_to_id
    ids = [token_id(token) for token in ("a", "c", "<|end|>", "d", "c", "b", "c", "<|end|>", "b")]
    texts = [p.text for p in push_all("byte_level", ids, ("c<|end|>b",))]
    assert texts == ["a", "", "", "cd", "", "cb", "", "", ""]


def test_an_incomplete_character_before_a_special_stop_is_output() -> None:
    end = oracle("byte_level").token_to_id("<|end|>")
    first = text_tokenizer("byte_level").list_vocabulary().index(b"\xf0")
    letter = oracle("byte_level").token_to_id("c")
    assert push_all("byte_level", [letter, first, end], ("<|end|>",)) == [
        Piece("c", 0, 1, None),
        Piece("", 1, 2, None),
        Piece("\ufffd", 2, 4, "<|end|>"),
    ]
    # It stands between the letter and the special token.
    assert push_all("byte_level", [letter, first, end], ("c<|end|>",))[-1].stop is None


@pytest.mark.parametrize("stop", [" the", "</s> the"])
def test_stop_string_matches_the_stripped_space_at_the_beginning(stop: str) -> None:
    ids = [oracle("byte_fallback").token_to_id(t) for t in ("</s>", "▁the", "ing")]
    assert [p.text for p in push_all("byte_fallback", ids)] == ["", "the", "ing"]
    assert push_all("byte_fallback", ids, (stop,)) == [
        Piece("", 0, 0, None),
        Piece("", 0, 3, stop),
    ]


@families
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_byte_ranges_cover_the_output(family: str, data: st.DataObject) -> None:
    ids = data.draw(token_ids(family))
    stops = data.draw(STOPS)
    pieces = push_all(family, ids, stops)
    output = "".join(p.text for p in pieces).encode()
    clipped = [output[p.begin_byte : p.end_byte] for p in pieces]
    assert b"".join(clipped) == output
    silent = [i for i in ids[: len(pieces) - 1] if text_tokenizer(family).is_special(i)]
    for token_id, piece in zip(ids, pieces[:-1], strict=False):
        if token_id in silent:
            assert piece.begin_byte == piece.end_byte


@given(text=st.text(max_size=30))
@example(text="你好😀é")
def test_each_byte_belongs_to_the_token_that_made_it(text: str) -> None:
    """Byte ranges are exact for valid text in a byte-level tokenizer."""
    tokenizer = text_tokenizer("byte_level")
    ids = tokenizer.encode(text, add_special_tokens=False)
    vocabulary = tokenizer.list_vocabulary()
    output = tokenizer.decode(ids).encode()
    for token_id, piece in zip(ids, tokenizer.split_prompt(ids), strict=True):
        made = b"" if tokenizer.is_special(token_id) else vocabulary[token_id]
        assert output[piece.begin_byte : piece.end_byte] == made


@families
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_prompts_pieces_join_to_its_decode(family: str, data: st.DataObject) -> None:
    ids = data.draw(token_ids(family))
    pieces = text_tokenizer(family).split_prompt(ids)
    assert len(pieces) == len(ids)
    assert "".join(p.text for p in pieces) == text_tokenizer(family).decode(ids)


@families
def test_padding_ids_decode_to_nothing(family: str) -> None:
    size = oracle(family).get_vocab_size()
    padded = list(range(size, size + PADDING + 5))
    pieces = push_all(family, padded)
    assert pieces == [Piece("", 0, 0, None)] * len(padded)


def test_padding_id_inside_a_character_keeps_it_whole() -> None:
    family = "byte_fallback"
    first, *rest = (3 + byte for byte in "語".encode())
    ids = [first, oracle(family).get_vocab_size(), 2, *rest, 2]
    assert [p.text for p in push_all(family, ids)] == ["", "", "", "", "語", ""]


def test_a_stripped_byte_is_in_no_range() -> None:
    space, letter = 3 + 0x20, oracle("byte_fallback").token_to_id("a")
    pieces = push_all("byte_fallback", [space, letter, letter])
    assert pieces == [Piece("", 0, 0, None), Piece("a", 0, 1, None), Piece("a", 1, 2, None)]
    end_of_sequence = 2
    assert push_all("byte_fallback", [space, end_of_sequence])[-1] == Piece("", 0, 0, None)


def test_only_the_first_spaces_of_a_text_are_stripped() -> None:
    ids = [oracle("strip_three").token_to_id(t) for t in ("▁▁", "▁▁", "▁", "▁the", "▁", "▁the")]
    assert "".join(p.text for p in push_all("strip_three", ids)) == "   the  the"


def test_a_character_appears_with_the_token_that_completes_it() -> None:
    tokenizer = text_tokenizer("byte_level")
    ids = [tokenizer.list_vocabulary().index(bytes([byte])) for byte in "😀".encode()]
    assert push_all("byte_level", [*ids, ids[0]]) == [
        Piece("", 0, 1, None),
        Piece("", 1, 2, None),
        Piece("", 2, 3, None),
        Piece("😀", 3, 4, None),
        Piece("\ufffd", 4, 7, None),
    ]


def test_text_held_for_a_stop_is_released_at_the_end() -> None:
    tokenizer = text_tokenizer("byte_level")
    ids = [tokenizer.list_vocabulary().index(letter.encode()) for letter in "xEN"]
    assert push_all("byte_level", ids, ("END",)) == [
        Piece("x", 0, 1, None),
        Piece("", 1, 2, None),
        Piece("EN", 2, 3, None),
    ]


def test_a_stop_may_end_inside_a_token() -> None:
    tokenizer = text_tokenizer("byte_fallback")
    ids = [oracle("byte_fallback").token_to_id(t) for t in ("▁I", "▁the", "ing")]
    sequence = tokenizer.make_sequence_text((" th",))
    assert sequence.push(ids[0], last=False) == Piece("I", 0, 1, None)
    assert sequence.push(ids[1], last=False) == Piece("", 1, 5, " th")
    assert sequence.text == "I"
    with pytest.raises(RuntimeError, match="ended"):
        sequence.push(ids[2], last=False)


def test_a_long_run_of_byte_tokens_takes_linear_time() -> None:
    tokenizer = text_tokenizer("byte_fallback")
    ids = [3 + 0xFF] * 50_000
    assert {piece.text for piece in tokenizer.split_prompt(ids)} == {"\ufffd"}
