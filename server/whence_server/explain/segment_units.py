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
_LINE = re.compile(r"[^\n]*\S[^\n]*\n?")
_END = re.compile(r"(?P<mark>[.!?…]+)[\"'”’»)\]]*(?=\s|$)|[。！？]+[」』”]*|\n+|$")
"""Possible end of a sentence."""
_ABBREVIATIONS = frozenset(
    {
        *("al", "approx", "cf", "dr", "e.g", "eg", "fig", "i.e", "ie", "jr", "mr", "mrs", "ms"),
        *("nr", "prof", "sr", "st", "vol", "vs"),
    }
)
_LAST_WORD = re.compile(r"[\w.]+$")
_NEXT = re.compile(r"\s*(\S)")


def find_words(text: str) -> list[tuple[int, int]]:
    """Return the words, without the spaces between them."""
    return [match.span() for match in _WORD.finditer(text)]


def find_lines(text: str) -> list[tuple[int, int]]:
    """Return the lines that are not blank, with their line breaks."""
    return [match.span() for match in _LINE.finditer(text)]


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
    for match in _END.finditer(text):
        following = _NEXT.match(text, match.end())
        if following is not None and following[1].islower() and match[0] != "":
            continue
        if match["mark"] == "." and _is_abbreviated(text[: match.start()], following is not None):
            continue
        yield match.end()


def _is_abbreviated(before: str, is_followed: bool) -> bool:
    """Return whether the word before a full stop is an abbreviation or an initial."""
    word = _LAST_WORD.search(before[-20:])
    if word is None or not is_followed:
        return False
    is_initial = len(word[0]) == 1 and word[0].isupper() and word[0] != "I"
    return is_initial or word[0].lower() in _ABBREVIATIONS
