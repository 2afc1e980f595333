"""Search for stop strings in a text that arrives in pieces.

The text may have parts that are not output (names of special tokens): they are searched like the
rest, and not released.

Matching by Knuth, Morris and Pratt ("Fast pattern matching in strings", 1977), with one automaton
for each stop string: its state is the length of the longest suffix that may begin the stop string.
One character takes time logarithmic in the stop string's length (section 5).
"""

from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Searched(NamedTuple):
    """Result of one more piece of text."""

    text: str
    """Output that can no longer be part of a stop string; held text of earlier pieces included."""
    stop: str | None
    """Completed stop string, before which the text ends; None if none."""


class StopSearch:
    """Search for the stop string that is completed first, before which the text ends.

    If one character completes several, the one that begins earliest counts. The result does not
    depend on the division of the text into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Prepare the search.

        Raises:
            ValueError: a stop string is empty.
        """
        self._automata = [_Automaton(stop) for stop in stops]
        # Text that is not released, and True if it is output (None: not known yet).
        self._kept: deque[tuple[str, bool | None]] = deque()
        self._num_kept = 0
        # Number of the last kept characters that may belong to a stop string.
        self._num_claimed = 0

    def feed(self, text: str, *, output: bool | None = True) -> Searched:
        """Take the next piece; to be called until a stop is found.

        Args:
            text: the piece.
            output: True if the piece is output; None if `settle` decides it later. No later text
                is released before that.
        """
        stop: str | None = None
        stop_end = 0
        self._num_claimed = 0
        for automaton in self._automata:
            end = automaton.feed(text)
            if end is not None:
                if stop is None or (end, -len(automaton.stop)) < (stop_end, -len(stop)):
                    stop, stop_end = automaton.stop, end
            else:
                self._num_claimed = max(self._num_claimed, automaton.num_matched)
        self._kept.append((text, output))
        self._num_kept += len(text)
        if stop is not None:
            self._num_claimed = 0
            self._drop(len(text) - stop_end + len(stop))
        return Searched(self._release(), stop)

    def settle(self, *, output: bool) -> str:
        """Decide if the undecided piece is output.

        Returns:
            The output that is released.
        """
        self._kept = deque((text, output if known is None else known) for text, known in self._kept)
        return self._release()

    def flush(self) -> str:
        """Return the held text after the last piece."""
        self._num_claimed = 0
        return self._release()

    def _drop(self, num_characters: int) -> None:
        """Remove the last kept characters."""
        self._num_kept -= num_characters
        while num_characters:
            text, output = self._kept.pop()
            if num_characters < len(text):
                self._kept.append((text[:-num_characters], output))
            num_characters -= min(num_characters, len(text))

    def _release(self) -> str:
        """Remove the first characters that belong to no stop string; return their output."""
        released: list[str] = []
        while self._kept and (output := self._kept[0][1]) is not None:
            text, _ = self._kept.popleft()
            length = min(len(text), self._num_kept - self._num_claimed)
            self._num_kept -= length
            if output:
                released.append(text[:length])
            if length < len(text):
                self._kept.appendleft((text[length:], output))
                break
        return "".join(released)


class _Automaton:
    """Automaton that matches one stop string.

    Attributes:
        stop: the stop string.
        num_matched: length of the longest proper prefix of `stop` at the text's end.
    """

    __slots__ = ("_pattern", "num_matched", "stop")

    def __init__(self, stop: str) -> None:
        if not stop:
            raise ValueError("a stop string must not be empty")
        self.stop = stop
        self.num_matched = 0
        self._pattern = _get_pattern(stop)

    def feed(self, text: str) -> int | None:
        """Return the offset in `text` just past the first match, or None."""
        stop = self.stop
        matched = self.num_matched
        offset = 0
        while offset < len(text):
            if matched == 0:
                offset = text.find(stop[0], offset)
                if offset < 0:
                    break
            elif stop[matched] != text[offset]:
                matched = self._pattern.fall(matched)
                if matched < 0:
                    matched = 0
                    offset += 1
                continue
            matched += 1
            offset += 1
            if matched == len(stop):
                return offset
        self.num_matched = matched
        return None


class _Pattern:
    """Failure tables of one stop string, which give the state after a mismatch.

    The tables grow with the matched prefix: a long stop string takes no time in advance.
    """

    __slots__ = ("_borders", "_falls", "_stop")

    def __init__(self, stop: str) -> None:
        self._stop = stop
        # By length of the matched prefix: the longest shorter one that is also its suffix ...
        self._borders = [0]
        # ... and the longest of those that the mismatched character may follow, or -1.
        self._falls = [-1]

    def fall(self, length: int) -> int:
        """Return the matched length after a mismatch with stop[length].

        Compare the character again at that length; -1 if the character begins no match.
        """
        while len(self._falls) <= length:
            self._extend()
        return self._falls[length]

    def _extend(self) -> None:
        stop, borders, length = self._stop, self._borders, len(self._borders)
        border = 0
        if length > 1:
            border = borders[-1]
            while border and stop[border] != stop[length - 1]:
                border = borders[border]
            border += stop[border] == stop[length - 1]
        borders.append(border)
        self._falls.append(self._falls[border] if stop[border] == stop[length] else border)


@lru_cache(maxsize=1024)
def _get_pattern(stop: str) -> _Pattern:
    """Return the tables of a stop string, which the sequences that have it share."""
    return _Pattern(stop)
