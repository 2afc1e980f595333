"""Words, sentences and lines of a text, as ranges of its characters."""

import re
from collections.abc import Iterator
from enum import StrEnum


class Unit(StrEnum):
    """Unit of the segments of a context; `SegmentUnit` in the contract."""

    WORDS = "words"
    SENTENCES = "sentences"
    LINES = "lines"
    MESSAGES = "messages"
    TOKENS = "tokens"


_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}]+")
"""A run without spaces; in Chinese and Japanese, which have none, a character."""
_END = re.compile(r"(?<![.!?…])(?P<mark>[.!?…]++)[\"'”’»)\]]*+(?=\s|$)|[。！？]+[」』”]*|\n+|$")
"""Possible end of a sentence; a run of marks is tried once, however long."""
_ABBREVIATIONS = frozenset(
    {
        *("al", "approx", "cf", "dr", "e.g", "eg", "fig", "i.e", "ie", "jr", "mr", "mrs", "ms"),
        *("nr", "prof", "sr", "st", "vol", "vs"),
    }
)
_LAST_WORD = re.compile(r"[\w.]+$")
_LONGEST_BEFORE = 20
"""Characters before a full stop in which its word is looked for."""
_SOLID = re.compile(r"\S")


def find_words(text: str) -> list[tuple[int, int]]:
    """Return the words, without the spaces between them."""
    return [match.span() for match in _WORD.finditer(text)]


def find_lines(text: str) -> list[tuple[int, int]]:
    """Return the lines that are not blank, with their line breaks."""
    found = []
    begin = 0
    for line in text.split("\n"):
        end = min(begin + len(line) + 1, len(text))
        if line.strip():
            found.append((begin, end))
        begin = end
    return found


def find_sentences(text: str) -> list[tuple[int, int]]:
    """Return the sentences, without the spaces between them.

    A sentence ends with its punctuation mark or its line, unless the next one begins with a small
    letter. Abbreviations and initials end none.
    """
    found = []
    begin = 0
    for end in _find_ends(text):
        stripped = text[begin:end].strip()
        if stripped:
            first = begin + len(text[begin:end]) - len(text[begin:end].lstrip())
            found.append((first, first + len(stripped)))
        begin = end
    return found


def _find_ends(text: str) -> Iterator[int]:
    solid = 0
    for match in _END.finditer(text):
        # Spaces are looked through once, however many possible ends stand among them.
        following = _SOLID.search(text, max(solid, match.end()))
        solid = len(text) if following is None else following.start()
        if following is not None and following[0].islower() and match[0] != "":
            continue
        before = text[max(0, match.start() - _LONGEST_BEFORE) : match.start()]
        if match["mark"] == "." and _is_abbreviated(before, following is not None):
            continue
        yield match.end()


def _is_abbreviated(before: str, is_followed: bool) -> bool:
    """Return whether the word before a full stop is an abbreviation or an initial."""
    word = _LAST_WORD.search(before)
    if word is None or not is_followed:
        return False
    is_initial = len(word[0]) == 1 and word[0].isupper() and word[0] != "I"
    return is_initial or word[0].lower() in _ABBREVIATIONS
