"""Fingerprints and comparison of texts: what a text shares with a sentence is found, and where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence_server.journal.search.comparing import (
    LEAST_SHARE,
    Match,
    cut_excerpt,
    find_bytes,
    find_match,
)
from whence_server.journal.search.fingerprints import (
    LEAST_CHARACTERS,
    make_fingerprints,
    normalise,
)

SENTENCE = "the capital of france is paris, which lies on the seine"
TEXTS = st.text(alphabet="abcdeé😀 \n", max_size=60)


@given(TEXTS, TEXTS, st.text(alphabet="abcdeé😀", min_size=LEAST_CHARACTERS, max_size=80))
def test_texts_with_a_passage_in_common_share_a_fingerprint(
    before: str, after: str, passage: str
) -> None:
    whole = make_fingerprints(before + passage + after)
    assert set(make_fingerprints(passage)) <= set(whole)
    assert make_fingerprints(passage)


@given(st.text(max_size=200))
def test_any_text_has_fingerprints_of_32_bits(text: str) -> None:
    found = make_fingerprints(normalise(text))
    assert all(-(2**31) <= it < 2**31 for it in found)
    assert len(set(found)) == len(found)


def test_fingerprints_are_about_one_for_seven_characters() -> None:
    text = " ".join(str(number * 7_919) for number in range(2_000))
    assert 0.12 < len(make_fingerprints(text)) / len(text) < 0.17


def test_fingerprints_stay_the_same() -> None:
    """Notice a change of the hash: what is on record would not be found any more."""
    assert make_fingerprints("the capital of france") == [319937759]


@given(TEXTS, st.text(alphabet="ABcé  ß\t\nİ", min_size=1, max_size=30), TEXTS)
def test_a_text_is_found_at_its_bytes(before: str, passage: str, after: str) -> None:
    text = f"{before}|{passage}|{after}"
    wanted = normalise(f"|{passage}|")
    match = find_match(wanted, normalise(text))
    assert match is not None
    assert match.share == 1.0
    found = find_bytes(text, match)
    inside = text.encode()[found.begin : found.end].decode()
    assert normalise(inside) == wanted


def test_a_changed_word_leaves_most_of_a_sentence() -> None:
    text = f"well, {SENTENCE.replace('which', 'and it')}. so it goes."
    match = find_match(SENTENCE, text)
    assert match is not None
    assert LEAST_SHARE < match.share < 1
    assert text[match.begin :].startswith("the capital")
    assert text[: match.end].endswith("seine")


@pytest.mark.parametrize(
    "text",
    ["", "the capital of spain", "a text about other things that has nothing of it", "seine " * 9],
)
def test_a_text_with_little_of_a_sentence_is_no_match(text: str) -> None:
    assert find_match(SENTENCE, text) is None


def test_words_in_another_order_are_not_the_sentence() -> None:
    words = SENTENCE.split()
    match = find_match(SENTENCE, " ".join([*words[5:], *words[:5]]))
    assert match is None or match.share < 1


def test_an_excerpt_has_what_stands_around() -> None:
    text = "one 😀 two three"
    found = find_bytes(text, Match(1.0, 6, 9))
    assert cut_excerpt(text, found, 4) == ("e 😀 ", "two", " thr")
