"""Search of detectors in a text that arrives in pieces."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import re2

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.redaction import RedactedRange
from whence_server.redaction.detectors import MAX_MATCH_BYTES, MORE_NEEDED, Detector
from whence_server.redaction.syntax import measure_shortest, parse, write, write_beginnings

_MEMORY_BYTES = 32 << 20
"""Memory of one expression's automaton; RE2 becomes slower beyond it, and stays linear."""
_LONGEST_ENDING_BYTES = 80
"""Bound on what ends a match that needed more text."""
_CONTEXT_BYTES = 4
"""Bytes before a place that a condition such as \\b looks at: one character."""


_LOOK_BACK_BYTES = MAX_MATCH_BYTES + _CONTEXT_BYTES


class _Match(NamedTuple):
    begin: int
    end: int
    order: int
    num_before: int = 0
    """Bytes from `begin` on that are not redacted."""


class _Open(NamedTuple):
    """A match that needs more text."""

    order: int
    begin: int
    searched: int
    """Place up to which its end was looked for."""


class Detectors:
    """Compiled detectors, which any number of searches share.

    Args:
        detectors: the detectors; of two that find the same range the first one names it.

    Raises:
        ConfigurationError: RE2 cannot search all of them together within its memory.

    Attributes:
        detectors: see Args.
        shortest: characters of the shortest text that can be a match.
    """

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = tuple(detectors)
        nodes = [parse(detector.regex) for detector in detectors]
        self.shortest = min(map(measure_shortest, nodes))
        self._expressions = [_compile(detector.regex) for detector in detectors]
        self._any = _compile("|".join(f"(?:{write(node)})" for node in nodes))
        beginnings = "|".join(f"(?:{write_beginnings(node)})" for node in nodes)
        self._tail = _compile(rf"(?:{beginnings})\z")

    def find_tail(self, text: bytes, begin: int) -> int:
        """Return the place from which the text's end may begin a match; its length if none."""
        found = self._tail.search(text, begin)
        return len(text) if found is None else int(found.start())

    def has_match(self, text: bytes, begin: int, before: int) -> bool:
        """Return whether an expression matches from a place in [begin, before) on."""
        found = self._any.search(text, begin)
        return found is not None and int(found.start()) < before

    def find(
        self, order: int, text: bytes, begin: int, before: int, *, whole: bool
    ) -> Iterator[_Match]:
        """Yield one detector's matches that begin in [begin, before).

        A match that needs more text comes last, with the end MORE_NEEDED.
        """
        expression, detector = self._expressions[order], self.detectors[order]
        while (found := expression.search(text, begin)) is not None and found.start() < before:
            place = int(found.start())
            num_before = detector.count_before(text, place)
            place += num_before
            end = detector.find_end(text, place, int(found.end()), whole)
            if end == MORE_NEEDED or end > 0:
                # The search goes on where the expression matches again.
                yield _Match(place - num_before, end, order, num_before)
            if end == MORE_NEEDED:
                return
            begin = end if end > 0 else place - end


class Redactor:
    """Search in one text. The result is that of the whole text, however it was split.

    Ranges are disjoint and come in order. A match that begins within a range of another detector
    is cut to what lies beyond it.

    Attributes:
        settled: bytes from the text's beginning in which nothing more will be found.
    """

    def __init__(self, detectors: Detectors) -> None:
        self._detectors = detectors
        self._text = b""
        """The text from `_base` on."""
        self._base = 0
        self._places = [0] * len(detectors.detectors)
        """Place from which each detector goes on; places are bytes from the text's beginning."""
        self._searched = 0
        """Place before which every match is known."""
        self._covered = 0
        """End of the last range."""
        self._open: _Open | None = None
        self.settled = 0

    def push(self, text: str, *, last: bool = False) -> list[RedactedRange]:
        """Take the next piece of the text; return the ranges that became certain with it."""
        if not text and not last:
            return []
        self._text += text.encode()
        if self._is_open(last):
            return []
        begin = self._searched - self._base
        before = len(self._text) if last else self._detectors.find_tail(self._text, begin)
        matches: list[_Match] = []
        if before > begin and self._detectors.has_match(self._text, begin, before):
            before, matches = self._find(begin, before, whole=last)
        ranges = list(self._settle(before, matches))
        self._trim()
        return ranges

    def _is_open(self, last: bool) -> bool:
        """Return whether the match that needed more text still does: all text waits for it."""
        if self._open is None:
            return False
        order, begin, searched = self._open
        find_end = self._detectors.detectors[order].find_end
        if find_end(self._text, begin - self._base, searched - self._base, last) != MORE_NEEDED:
            self._open = None
            return False
        place = self._base + len(self._text) - _LONGEST_ENDING_BYTES
        self._open = _Open(order, begin, max(place, searched))
        return True

    def _find(self, begin: int, before: int, *, whole: bool) -> tuple[int, list[_Match]]:
        """Return the place before which every match is known, and these matches."""
        found: list[_Match] = []
        for order, place in enumerate(self._places):
            start = max(begin, place - self._base)
            matches = list(self._detectors.find(order, self._text, start, before, whole=whole))
            if matches and matches[-1].end == MORE_NEEDED:
                before = matches.pop().begin
                self._open = _Open(order, self._base + before, self._base + before)
            found += matches
        known = sorted(
            (match for match in found if match.begin < before),
            key=lambda match: (match.begin, -match.end, match.order),
        )
        return before, known

    def _settle(self, before: int, matches: Sequence[_Match]) -> Iterator[RedactedRange]:
        """Yield the ranges of matches; everything before a place is settled, and they are."""
        self._searched = self._base + before
        for match in matches:
            begin = self._base + match.begin + match.num_before
            end = self._base + match.end
            self._places[match.order] = end
            if end > self._covered:
                kind = self._detectors.detectors[match.order].kind
                yield RedactedRange(kind, max(begin, self._covered), end)
                self._covered = end
        self.settled = max(self._searched, self._covered)

    def _trim(self) -> None:
        """Drop text that no search looks at again."""
        num_bytes = self._searched - self._base - _CONTEXT_BYTES
        if num_bytes > 0:
            self._text = self._text[num_bytes:]
            self._base += num_bytes


def cut_end(detectors: Detectors, text: str) -> str:
    """Return the end of a text in which a match may begin that goes on beyond it; "" if none may.

    It begins with the character before, which conditions look at.
    """
    # Where the cut falls within a character, less is looked at.
    content = text.encode()[-_LOOK_BACK_BYTES:].decode(errors="ignore").encode()
    redactor = Redactor(detectors)
    redactor.push(content.decode())
    if redactor.settled >= len(content):
        return ""
    return content[max(redactor.settled - _CONTEXT_BYTES, 0) :].decode(errors="ignore")


def find_ranges(detectors: Detectors, text: str) -> list[RedactedRange]:
    """Return the ranges of a whole text."""
    content = text.encode()
    if len(text) < detectors.shortest or not detectors.has_match(content, 0, len(content)):
        # Most texts are short: a number among a million in a JSON text, or a name.
        return []
    return Redactor(detectors).push(text, last=True)


def _compile(source: str) -> re2._Regexp:
    options = re2.Options()
    options.never_capture = True
    options.log_errors = False
    options.max_mem = _MEMORY_BYTES
    try:
        return re2.compile(source.encode(), options)
    except re2.error as error:
        raise ConfigurationError(
            f"--redact-patterns: RE2 cannot search these patterns ({error.args[0].decode()}); use "
            "fewer of them, or fewer repetitions"
        ) from None
