"""The text that is stored: marks in the place of what was redacted."""

from bisect import bisect_right
from collections.abc import Sequence

from whence_server.domain.redaction import RedactedRange


class MarkedText:
    """Places and pieces of the stored text, by those of the original.

    All places are bytes from the beginning of the text in UTF-8. A place within a range stands for
    the end of the range's mark: a token that begins a range has the whole mark, and the others of
    the range have nothing.
    """

    def __init__(self) -> None:
        self.ranges: list[RedactedRange] = []
        self._ends: list[int] = []
        self._shifts = [0]
        """Bytes that the stored text is longer by, after each number of ranges."""

    def add(self, ranges: Sequence[RedactedRange]) -> None:
        """Add ranges, which come after those that were added before."""
        for each in ranges:
            self.ranges.append(each)
            self._ends.append(each.end)
            grown = len(each.mark) - (each.end - each.begin)
            self._shifts.append(self._shifts[-1] + grown)

    def move(self, place: int) -> int:
        """Return the place in the stored text."""
        number = bisect_right(self._ends, place)
        if number < len(self.ranges) and self.ranges[number].begin < place:
            return self.ranges[number].begin + self._shifts[number] + len(self.ranges[number].mark)
        return place + self._shifts[number]

    def find(self, begin: int, end: int) -> list[int]:
        """Return the numbers of the ranges that a part of the text overlaps.

        An empty part overlaps a range that it lies within.
        """
        first = number = bisect_right(self._ends, begin)
        while number < len(self.ranges) and self.ranges[number].begin < end:
            number += 1
        return list(range(first, number))

    def write(self, text: str, begin: int) -> str:
        """Return the stored form of a piece of the text, which begins at a place."""
        content = text.encode()
        written, at = bytearray(), begin
        for number in self.find(begin, begin + len(content)):
            each = self.ranges[number]
            if each.begin >= begin:
                written += content[at - begin : each.begin - begin] + each.mark.encode()
            at = each.end
        written += content[at - begin :] if at < begin + len(content) else b""
        return written.decode()


def redact(text: str, ranges: Sequence[RedactedRange]) -> str:
    """Return a whole text with marks in the place of ranges."""
    marked = MarkedText()
    marked.add(ranges)
    return marked.write(text, 0)
