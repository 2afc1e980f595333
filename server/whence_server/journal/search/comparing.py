"""Comparison of a sentence with a text: does the text contain it, or most of it, and where?"""

from collections import Counter
from typing import NamedTuple

from whence_server.journal.search.fingerprints import GRAM_CHARACTERS

LEAST_SHARE = 0.6
"""Least share of a sentence's trigrams that a text must have in one place."""
_TRIGRAM = 3
_MAX_PROBES = 128
_SLACK = 16


class Match(NamedTuple):
    """Place of a sentence in a text."""

    share: float
    """Share of the sentence's trigrams that stand there; 1 for the sentence itself."""
    begin: int
    """First character, in the text as it was compared."""
    end: int


def find_match(sentence: str, text: str) -> Match | None:
    """Return the place of a sentence, or of most of it, in a text; both are normalised."""
    begin = text.find(sentence)
    if begin >= 0:
        return Match(1.0, begin, begin + len(sentence))
    probes = _find_probes(sentence, text)
    if not probes:
        return None
    ((shift, _),) = Counter(found - place for place, found in probes).most_common(1)
    slack = max(_SLACK, len(sentence) // 4)
    low, high = max(0, shift - slack), shift + len(sentence) + slack
    wanted = _list_trigrams(sentence)
    share = len(wanted & _list_trigrams(text[low:high])) / len(wanted)
    if share < LEAST_SHARE:
        return None
    own = [found for _, found in probes if low <= found < high]
    # Common words in another order may have all of the trigrams.
    return Match(min(share, 0.999), min(own), min(max(own) + GRAM_CHARACTERS, len(text)))


def _find_probes(sentence: str, text: str) -> list[tuple[int, int]]:
    """Return places of passages in the sentence and in the text."""
    last = len(sentence) - GRAM_CHARACTERS
    stride = max(1, last // _MAX_PROBES)
    found = []
    for place in range(0, last + 1, stride):
        there = text.find(sentence[place : place + GRAM_CHARACTERS])
        if there >= 0:
            found.append((place, there))
    return found


def _list_trigrams(text: str) -> set[str]:
    return {text[place : place + _TRIGRAM] for place in range(len(text) - _TRIGRAM + 1)}


class ByteRange(NamedTuple):
    """Range [begin, end) of a text's UTF-8 bytes."""

    begin: int
    end: int


def find_bytes(text: str, match: Match) -> ByteRange:
    """Return the bytes of a text that a match in its normalised form stands for."""
    places = _map_places(text)
    begin = places[match.begin]
    end = places[match.end - 1] + 1
    before = len(text[:begin].encode(errors="replace"))
    return ByteRange(before, before + len(text[begin:end].encode(errors="replace")))


def _map_places(text: str) -> list[int]:
    """Return, for each character of the normalised text, its place in the text."""
    places: list[int] = []
    is_after_space = True
    for place, character in enumerate(text):
        if not character.isspace():
            places += [place] * len(character.casefold())
            is_after_space = False
        elif not is_after_space:
            places.append(place)
            is_after_space = True
    if is_after_space and places:
        places.pop()
    return places


def cut_excerpt(text: str, found: ByteRange, most_characters: int) -> tuple[str, str, str]:
    """Return what stands before a range, in it, and after it, within a bound for each."""
    raw = text.encode(errors="replace")
    before = raw[: found.begin].decode(errors="replace")
    inside = raw[found.begin : found.end].decode(errors="replace")
    after = raw[found.end :].decode(errors="replace")
    return before[-most_characters:], inside[: 4 * most_characters], after[:most_characters]
