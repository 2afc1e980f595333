"""Streaming search: it finds what is in the whole text, and holds back no more than it must."""

from itertools import pairwise

import pytest
import re2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whence_server.domain.redaction import RedactedRange
from whence_server.redaction.detectors import DETECTORS, MAX_MATCH_BYTES, Detector, accept
from whence_server.redaction.marks import MarkedText, redact
from whence_server.redaction.stream import Detectors, Redactor, find_ranges

ALL = Detectors(DETECTORS)
KEY_BLOCK = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKC\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
FRAGMENTS = st.sampled_from(
    [
        *("joe@example.com", "jö.blow+x@mail.example.co.uk", "@", "a", ".", "com", "-", "_", "é"),
        *("4111 1111 1111 1111", "4111-1111", "5555555555554444", "41", "1", "0"),
        *("DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "DE", "89"),
        *("+49 30 1234567", "+", "00", "(415) 555-2671", "(", "030 123", "01-02-2024"),
        *("sk-", "ghp_", "abcdefghijklmnopqrstu", "AKIAIOSFODNN7EXAMPLE", JWT, "eyJ"),
        *(KEY_BLOCK, "-----BEGIN", " PRIVATE KEY-----", "-----END A KEY-----", "\n"),
        *(" ", ",", "Hello", "€", "\U0001f600", "\\", "\\n", "n", "\u202f"),
    ]
)
TEXTS = st.lists(FRAGMENTS | st.text(max_size=4), max_size=14).map("".join)
OWN = (
    r"C-[0-9]{1,3}",
    r"\bab{1,2}\b",
    r"^a|b$",
    r"(?i)a(?:b|ca){0,2}c?",
    r"(?:a\B){1,2}b?",
    r"(?m)^[ab]{1,3}$",
    r"a(?:bc|b)c?a",
    r"[^a]b|é{1,2}a",
    r"(a|ab)(c|bcd)",
    r"a{2}(?:b{0,2}|\s)a",
    r"\ba-\b[01]{2}\b",
    r"a\Bb{1,4}",
    r"a(?:\Bb){1,2}",
    r"(?m)a$\n^b",
)


def stream(detectors: Detectors, text: str, splits: list[int]) -> list[RedactedRange]:
    """Search a text in pieces; check that nothing is found in what was settled."""
    redactor, found, settled = Redactor(detectors), [], 0
    places = [0, *sorted({split % (len(text) + 1) for split in splits}), len(text)]
    for begin, end in pairwise(places):
        new = redactor.push(text[begin:end])
        assert all(each.begin >= settled for each in new)
        assert redactor.settled >= settled
        settled = redactor.settled
        found += new
    return found + redactor.push("", last=True)


SPLITS = st.lists(st.integers(0, 10_000), max_size=30)


@settings(max_examples=200, deadline=None)
@given(TEXTS, SPLITS)
@example(KEY_BLOCK, list(range(100)))
@example("joe@example.com", list(range(20)))
def test_pieces_give_what_the_whole_text_gives(text: str, splits: list[int]) -> None:
    assert stream(ALL, text, splits) == find_ranges(ALL, text)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(OWN),
    st.text(alphabet="abcdBCÉé01- \n", max_size=14),
    SPLITS,
)
def test_own_patterns_match_what_re2_finds_in_the_whole(
    pattern: str, text: str, splits: list[int]
) -> None:
    expected = [("own", *match.span()) for match in re2.compile(pattern).finditer(text.encode())]
    detectors = Detectors([Detector("own", pattern, accept)])
    assert stream(detectors, text, splits) == expected
    assert find_ranges(detectors, text) == expected


def test_condition_within_a_pattern_holds_its_beginning_back() -> None:
    redactor = Redactor(Detectors([Detector("own", r"\bREF-\b[0-9]{6}\b", accept)]))
    assert redactor.push("REF-") == []
    assert redactor.settled == 0
    assert redactor.push("123456", last=True) == [("own", 0, 10)]


@settings(deadline=None)
@given(TEXTS, SPLITS)
def test_ranges_are_disjoint_and_in_order(text: str, splits: list[int]) -> None:
    end = 0
    for each in stream(ALL, text, splits):
        assert end <= each.begin < each.end <= len(text.encode())
        end = each.end


def test_prose_waits_for_the_end_of_a_word_only() -> None:
    redactor, num_bytes = Redactor(ALL), 0
    for word in ("The", "capital", "of", "France", "is", "Paris,", "a", "city", "of", "light", "."):
        redactor.push(word)
        redactor.push(" ")
        num_bytes += len(word) + 1
        assert redactor.settled == num_bytes


def test_short_texts_are_not_searched_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ALL.shortest == 4  # 0123, whose digits are counted later
    assert Detectors([Detector("own", "ab{2}c?", accept)]).shortest == 3
    monkeypatch.setattr(Redactor, "push", None)
    assert find_ranges(ALL, "12345") == find_ranges(ALL, "Paris") == []
    monkeypatch.setattr(ALL, "has_match", None)
    assert find_ranges(ALL, "123") == []


def test_no_text_waits_beyond_the_longest_match() -> None:
    redactor, num_bytes = Redactor(ALL), 0
    for piece in ["-----BEGIN PRIVATE KEY-----", *["a" * 1_000] * 40]:
        redactor.push(piece)
        num_bytes += len(piece)
        assert num_bytes - redactor.settled <= MAX_MATCH_BYTES


def test_key_without_an_end_is_redacted_up_to_the_end_of_the_text() -> None:
    text = "Here:\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\nabc"
    assert redact(text, find_ranges(ALL, text)) == "Here:\n[key]"


def test_match_within_another_is_part_of_it_and_one_across_its_end_is_cut() -> None:
    detectors = Detectors([Detector("one", "abcd", accept), Detector("two", "bc|cdef", accept)])
    assert find_ranges(detectors, "xabcdefx") == [("one", 1, 5)]
    assert find_ranges(
        Detectors([Detector("a", "abc", accept), Detector("b", "cde", accept)]), "abcde"
    ) == [
        ("a", 0, 3),
        ("b", 3, 5),
    ]


@settings(deadline=None)
@given(TEXTS, SPLITS)
def test_pieces_of_the_stored_text_join_to_the_whole(text: str, splits: list[int]) -> None:
    ranges = find_ranges(ALL, text)
    marked = MarkedText()
    marked.add(ranges)
    places = [0, *sorted({split % (len(text) + 1) for split in splits}), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    begin, written = 0, b""
    for piece in pieces:
        end = begin + len(piece.encode())
        new = marked.write(piece, begin).encode()
        assert (len(written), len(written + new)) == (marked.move(begin), marked.move(end))
        begin, written = end, written + new
    expected, at = b"", 0
    for each in ranges:
        expected += text.encode()[at : each.begin] + f"[{each.kind}]".encode()
        at = each.end
    assert written == expected + text.encode()[at:]
