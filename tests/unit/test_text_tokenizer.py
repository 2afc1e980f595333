"""Encoding and the vocabulary, compared with transformers and `tokenizers`."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracles import FAMILIES, PADDING
from transformers import PreTrainedTokenizerFast

from whence_server.domain.model import TextFiles
from whence_server.text.tokenizer import TextTokenizer
from whence_server.text.unicode import LoneSurrogateError

families = pytest.mark.parametrize("family", FAMILIES)


@cache
def both(family: str) -> tuple[TextTokenizer, PreTrainedTokenizerFast]:
    tokenizer = FAMILIES[family]()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    files = TextFiles(tokenizer.to_str(), None, {})
    size = tokenizer.get_vocab_size() + PADDING
    return TextTokenizer(files, size), PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@families
@pytest.mark.parametrize("add_special_tokens", [True, False])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_encodes_as_transformers_does(family: str, add_special_tokens: bool, text: str) -> None:
    ours, theirs = both(family)
    for spelled in (text, f"{text}</s> <tool call>{text}"):
        expected = theirs(spelled, add_special_tokens=add_special_tokens)["input_ids"]
        assert ours.encode(spelled, add_special_tokens=add_special_tokens) == expected


def test_special_tokens_are_added_by_default() -> None:
    ours, theirs = both("byte_level")
    begin = theirs.convert_tokens_to_ids("<s>")
    assert ours.encode("x") == [begin, *ours.encode("x", add_special_tokens=False)]


@pytest.mark.parametrize(("text", "position"), [("\ud800", 0), ("ab\udfffc", 2), ("é\ud83d", 1)])
def test_a_lone_surrogate_is_refused_with_its_position(text: str, position: int) -> None:
    with pytest.raises(LoneSurrogateError, match=f"at character {position}") as caught:
        both("byte_level")[0].encode(text)
    assert caught.value.position == position
    assert isinstance(caught.value, ValueError)


@families
def test_the_vocabulary_is_as_long_as_the_models(family: str) -> None:
    tokenizer = FAMILIES[family]()
    size = tokenizer.get_vocab_size()
    files = TextFiles(tokenizer.to_str(), None, {})
    padded = TextTokenizer(files, size + PADDING)
    assert len(padded.list_vocabulary()) == size + PADDING
    assert padded.list_vocabulary()[size:] == [b""] * PADDING
    assert padded.get_token_text(size) == padded.get_token_text(size + PADDING) == ""
    assert TextTokenizer(files, size - 1).list_vocabulary() == padded.list_vocabulary()[: size - 1]


@pytest.mark.parametrize("family", ["byte_level", "byte_level_normalized"])
def test_byte_level_tokens_are_their_exact_bytes(family: str) -> None:
    ours, _ = both(family)
    tokenizer = FAMILIES[family]()
    vocabulary = ours.list_vocabulary()
    for token_id in range(tokenizer.get_vocab_size()):
        if not ours.is_special(token_id):
            text = vocabulary[token_id].decode(errors="replace")
            assert text == tokenizer.decode([token_id])
    single = {token for token in vocabulary if len(token) == 1}
    assert single == {bytes([byte]) for byte in range(256)}
    if family == "byte_level":
        assert b" tool" in vocabulary
        assert "日本".encode() in vocabulary


@pytest.mark.parametrize(
    ("family", "token", "raw"),
    [
        ("byte_fallback", "▁the", b" the"),
        ("byte_fallback", "<0xE2>", b"\xe2"),
        ("byte_fallback", "▁▁", b"  "),
        ("byte_fallback", "é", "é".encode()),
        ("byte_fallback", "</s>", b"</s>"),
        ("byte_fallback", "<tool call>", b" <tool call>"),  # normalized as any text is
        ("metaspace", "▁the", b" the"),
        ("metaspace", "<0xE2>", b"<0xE2>"),
        ("word_piece", "##o", b"o"),
        ("word_piece", "o", b" o"),
        ("word_piece", "[SEP]", b"[SEP]"),
        ("without_decoder", "quick", b" quick"),
        ("byte_level", "<|end|>", b"<|end|>"),
        ("byte_level", "<tool call>", b"<tool call>"),
    ],
)
def test_tokens_are_as_they_appear_inside_a_text(family: str, token: str, raw: bytes) -> None:
    ours, theirs = both(family)
    token_id = theirs.convert_tokens_to_ids(token)
    assert ours.list_vocabulary()[token_id] == raw
    assert ours.get_token_text(token_id) == ("<0xE2>" if raw == b"\xe2" else raw.decode())


def test_is_special_distinguishes_special_tokens() -> None:
    ours, theirs = both("byte_level")
    assert ours.is_special(theirs.convert_tokens_to_ids("<|end|>"))
    assert not ours.is_special(theirs.convert_tokens_to_ids("<tool call>"))
    assert not ours.is_special(10**6)


def test_a_special_token_that_the_normalizer_changes_is_text_as_the_decoder_has_it() -> None:
    ours, theirs = both("byte_level_normalized")
    token_id = theirs.convert_tokens_to_ids("<odd>")
    expected = theirs.decode([token_id], skip_special_tokens=True)
    assert expected
    assert ours.split_prompt([token_id])[0].text == expected
    assert not ours.is_special(token_id)
