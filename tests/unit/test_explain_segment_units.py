"""Words, sentences and lines of long texts, and the same of short ones as plain patterns find."""

import random
import re
import time
from collections.abc import Callable

import pytest

from whence_server.explain.segment_units import (
    Unit,
    _is_abbreviated,
    find_lines,
    find_sentences,
    find_words,
)
from whence_server.explain.segments import TokenTexts, divide

NUM = 200_000
LONG = {
    "dots before a letter": "." * NUM + "a",
    "dots and quotes before a letter": "." * (NUM // 2) + '"' * (NUM // 2) + "a",
    "marks and quotes by turns": '."' * (NUM // 2) + "a",
    "ideographic marks": "。" * NUM + "a",
    "blanks": " " * NUM,
    "lines of a blank": "\n " * (NUM // 2),
    "short sentences": "A b. " * (NUM // 5),
    "abbreviations": "e.g. " * (NUM // 5),
    "one word": "a" * NUM,
}
LONGEST_S = 30.0
"""Time that a text may take on a slow machine; dots took eleven minutes by plain patterns."""
_END = re.compile(r"(?P<mark>[.!?…]+)[\"'”’»)\]]*(?=\s|$)|[。！？]+[」』”]*|\n+|$")
_LINE = re.compile(r"[^\n]*\S[^\n]*\n?")


def find_plainly(text: str) -> list[tuple[int, int]]:
    """Return the sentences, by patterns that take the square of the text's length."""
    found, begin = [], 0
    for match in _END.finditer(text):
        following = re.compile(r"\s*(\S)").match(text, match.end())
        if following is not None and following[1].islower() and match[0] != "":
            continue
        before = text[: match.start()][-20:]
        if match["mark"] == "." and _is_abbreviated(before, following is not None):
            continue
        part = text[begin : match.end()]
        if part.strip():
            first = begin + len(part) - len(part.lstrip())
            found.append((first, first + len(part.strip())))
        begin = match.end()
    return found


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("find", [find_words, find_lines, find_sentences])
def test_long_texts_take_a_bounded_time(
    name: str, find: Callable[[str], list[tuple[int, int]]]
) -> None:
    started = time.process_time()
    find(LONG[name])
    assert time.process_time() - started < LONGEST_S


@pytest.mark.parametrize("name", LONG)
def test_long_prompts_are_divided_in_a_bounded_time(name: str) -> None:
    text = LONG[name]
    # Tokens of eight characters: blanks and dots are together in real vocabularies too.
    begins = tuple(range(0, len(text), 8))
    started = time.process_time()
    for unit in (None, Unit.LINES, Unit.SENTENCES):
        divide(TokenTexts(text, begins, (False,) * len(begins)), unit)
    assert time.process_time() - started < LONGEST_S


def test_a_prompt_of_roles_alone_is_divided_in_a_bounded_time() -> None:
    # Each role stands after a special token.
    num = 20_000
    begins = tuple(place for i in range(num) for place in (4 * i, 4 * i))
    texts = TokenTexts("user" * num, begins, (True, False) * num)
    started = time.process_time()
    assert divide(texts, Unit.TOKENS) == ([], Unit.TOKENS)
    assert time.process_time() - started < LONGEST_S


def test_short_texts_have_the_parts_that_plain_patterns_find() -> None:
    rng = random.Random(2)
    pieces = (*"aB.!?…\"')] \n\t。！」I", "Dr", "e.g", "  ", "...", "\x1c", "\u2028", " A. ")
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        assert find_sentences(text) == find_plainly(text), repr(text)
        assert find_lines(text) == [match.span() for match in _LINE.finditer(text)], repr(text)
