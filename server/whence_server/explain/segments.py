"""Segments: the parts of a context that get one score each."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from whence_server.explain.segment_headers import find_headers
from whence_server.explain.segment_units import Unit, find_lines, find_sentences, find_words

FEWEST_SENTENCES = 4
"""Fewest sentences into which a context is divided by default; with fewer, into words."""


class Segment(NamedTuple):
    """Tokens of the context at the positions [start, end)."""

    start: int
    end: int


class SegmentsError(ValueError):
    """Segments of a caller that cannot be used; the message says which one, and what is right."""


@dataclass(frozen=True)
class TokenTexts:
    """Text of a prompt, token by token.

    Attributes:
        text: the text, without special tokens.
        begins: for each token, the character of `text` in which its first byte lies; for a special
            token, where it stands. Ascending.
        is_special: for each token, true if it adds no text.
    """

    text: str
    begins: tuple[int, ...]
    is_special: tuple[bool, ...]


class _Piece(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def begin_byte(self) -> int: ...


class PromptTokenizer(Protocol):
    """The part of `TextTokenizer` that tells the texts of a prompt's tokens."""

    def split_prompt(self, token_ids: Sequence[int], /) -> Sequence[_Piece]:
        """Return the text that each token adds."""
        ...

    def is_special(self, token_id: int, /) -> bool:
        """Return whether the token adds no text."""
        ...


def read_texts(tokenizer: PromptTokenizer, token_ids: Sequence[int]) -> TokenTexts:
    """Return the text of token ids, with the place of each token in it."""
    pieces = tokenizer.split_prompt(token_ids)
    text = "".join(piece.text for piece in pieces)
    characters: list[int] = []
    for i, character in enumerate(text):
        characters += [i] * len(character.encode(errors="surrogatepass"))
    characters.append(len(text))
    last = len(characters) - 1
    return TokenTexts(
        text,
        tuple(characters[min(piece.begin_byte, last)] for piece in pieces),
        tuple(map(tokenizer.is_special, token_ids)),
    )


def divide(
    texts: TokenTexts, unit: Unit | None = None, contents: Sequence[str] | None = None
) -> tuple[list[Segment], Unit]:
    """Divide a prompt into segments.

    Special tokens and the chat template's own tokens are in no segment, so that they are never
    taken out; nor are blank tokens with line breaks, except in lines.

    Args:
        texts: texts of the prompt's tokens.
        unit: unit of the segments; None for sentences, or words if there are few sentences.
        contents: texts of the messages that the chat template was given, in its order; None if
            they are not known, for the roles after special tokens to tell the template's own.

    Returns:
        The segments by ascending position, and their unit.
    """
    protected = _protect(texts, contents)
    if unit is None:
        sentences = _assign(texts, protected, find_sentences)
        if len(sentences) >= FEWEST_SENTENCES:
            return sentences, Unit.SENTENCES
        unit = Unit.WORDS
    if unit is Unit.TOKENS:
        return [Segment(i, i + 1) for i, kept in enumerate(protected) if not kept], unit
    if unit is Unit.MESSAGES:
        return list(_find_runs(texts, protected)), unit
    find = {Unit.WORDS: find_words, Unit.SENTENCES: find_sentences, Unit.LINES: find_lines}
    return _assign(texts, protected, find[unit]), unit


def check_segments(segments: Sequence[Segment], end: int) -> None:
    """Check segments that a caller chose.

    Args:
        segments: the segments.
        end: position of the span that is explained.

    Raises:
        SegmentsError: one is empty, overlaps the one before it, or reaches into the span.
    """
    before = 0
    for i, (first, last) in enumerate(segments):
        if first >= last:
            raise SegmentsError(
                f"segments[{i}] is empty: it begins at position {first} and ends at {last}; its "
                "end must be greater"
            )
        if first < before:
            raise SegmentsError(
                f"segments[{i}] begins at position {first}, before the end of segments[{i - 1}], "
                f"{before}: segments must be ascending and must not overlap"
            )
        if last > end:
            raise SegmentsError(
                f"segments[{i}] ends at position {last}, expected at most {end}, where the "
                "explained span begins"
            )
        before = last


def _protect(texts: TokenTexts, contents: Sequence[str] | None) -> list[bool]:
    """Return, for each token, whether it is special or the template's own."""
    ranges = None if contents is None else _find_contents(texts.text, contents)
    protected = list(texts.is_special)
    if ranges is not None:
        inside = [False] * (len(texts.text) + 1)
        for begin, end in ranges:
            inside[begin:end] = [True] * (end - begin)
        return [
            special or not any(inside[slice(*_get_characters(texts, i))])
            for i, special in enumerate(protected)
        ]
    for begin, end in find_headers(texts.text, _list_special_places(texts)):
        for i in range(bisect_left(texts.begins, begin), bisect_left(texts.begins, end)):
            protected[i] = True
    return protected


def _find_contents(text: str, contents: Sequence[str]) -> list[tuple[int, int]] | None:
    """Return the places of the messages in a prompt; None if one is not there as it was given."""
    found = []
    begin = 0
    for content in contents:
        # Templates strip contents.
        stripped = content.strip()
        begin = text.find(stripped, begin)
        if begin < 0:
            return None
        found.append((begin, begin + len(stripped)))
        begin += len(stripped)
    return found


def _list_special_places(texts: TokenTexts) -> list[int]:
    return [begin for begin, special in zip(texts.begins, texts.is_special, strict=True) if special]


def _get_characters(texts: TokenTexts, i: int) -> tuple[int, int]:
    """Return the characters of a token; one byte of a character is that character."""
    begin = texts.begins[i]
    end = texts.begins[i + 1] if i + 1 < len(texts.begins) else len(texts.text)
    return begin, max(end, begin + 1)


def _assign(
    texts: TokenTexts,
    protected: Sequence[bool],
    find: Callable[[str], list[tuple[int, int]]],
) -> list[Segment]:
    """Return the segments of units of the text.

    A token belongs to the unit of its first character that is not blank: the space before a word
    is the word's.
    """
    unit_of = [-1] * (len(texts.text) + 1)
    for i, (begin, end) in enumerate(find(texts.text)):
        unit_of[begin:end] = [i] * (end - begin)
    units = [
        -1 if protected[i] else _find_unit(texts, i, unit_of) for i in range(len(texts.begins))
    ]
    _give_spaces(texts, protected, units)
    segments: list[Segment] = []
    for i, unit in enumerate(units):
        if unit < 0:
            continue
        if i and units[i - 1] == unit:
            segments[-1] = Segment(segments[-1].start, i + 1)
        else:
            segments.append(Segment(i, i + 1))
    return segments


def _find_unit(texts: TokenTexts, i: int, unit_of: Sequence[int]) -> int:
    begin, end = _get_characters(texts, i)
    solid = (place for place in range(begin, end) if not texts.text[place : place + 1].isspace())
    place = next(solid, begin)
    return unit_of[min(place, len(unit_of) - 1)]


def _give_spaces(texts: TokenTexts, protected: Sequence[bool], units: list[int]) -> None:
    """Give tokens of spaces alone to the unit after them."""
    for i in range(len(units) - 2, -1, -1):
        text = texts.text[slice(*_get_characters(texts, i))]
        if units[i] < 0 and not protected[i] and text.isspace() and "\n" not in text:
            units[i] = units[i + 1]


def _find_runs(texts: TokenTexts, protected: Sequence[bool]) -> Iterator[Segment]:
    """Yield the runs of tokens that are not protected, without blank ones."""
    begin = 0
    for i in range(len(protected) + 1):
        if i < len(protected) and not protected[i]:
            continue
        if i > begin:
            text = texts.text[_get_characters(texts, begin)[0] : _get_characters(texts, i - 1)[1]]
            if text.strip():
                yield Segment(begin, i)
        begin = i + 1
