"""Finds where a stop string ends a text that arrives in pieces.

The text may hold parts that are no output, such as the names of special tokens: they are
searched like the rest, and left out of what is released.

Knuth, Morris and Pratt's matching ("Fast pattern matching in strings", 1977), one automaton
for each stop string: its state is exactly what has to be known here, the length of the longest
suffix that might still begin the stop. One character costs it at most a logarithm of the stop's
length (section 5), so that no text makes a single token expensive.
"""

from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Searched(NamedTuple):
    """What became certain with one more piece of text."""

    text: str
    """Output that no stop string can claim any more; together with what came before."""
    stop: str | None
    """The stop string that was completed: the text ends before it."""


class StopSearch:
    """Cuts a text before the stop string that is completed first.

    Of those completed by the same character it is the one that begins earliest. The outcome
    does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Prepare the search.

        Raises:
            ValueError: a stop string is empty.
        """
        self._automata = [_Automaton(stop) for stop in stops]
        # What has not been released: text, and whether it is output (None: not known yet).
        self._kept: deque[tuple[str, bool | None]] = deque()
        self._num_kept = 0
        # As many of the last characters kept may belong to a stop string.
        self._num_claimed = 0

    def feed(self, text: str, *, output: bool | None = True) -> Searched:
        """Take the next piece; to be called until a stop is found.

        Args:
            text: the piece.
            output: whether it is released once no stop string can claim it; None where
                `settle` will say so. Nothing behind it is released before.
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
        """Decide on the piece that was fed without being known to be output or not.

        Returns:
            The output that is released with it.
        """
        self._kept = deque((text, output if known is None else known) for text, known in self._kept)
        return self._release()

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        self._num_claimed = 0
        return self._release()

    def _drop(self, num_characters: int) -> None:
        """Remove the last of the kept characters."""
        self._num_kept -= num_characters
        while num_characters:
            text, output = self._kept.pop()
            if num_characters < len(text):
                self._kept.append((text[:-num_characters], output))
            num_characters -= min(num_characters, len(text))

    def _release(self) -> str:
        """Remove the first characters that no stop string claims; return the output in them."""
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
    """Matches one stop string.

    Attributes:
        stop: what it looks for.
        num_matched: length of the longest proper prefix of `stop` that the text ends with.
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
    """Where matching of one stop string goes on after a mismatch.

    The tables grow with what has been matched: a long stop costs nothing up front.
    """

    __slots__ = ("_borders", "_falls", "_stop")

    def __init__(self, stop: str) -> None:
        self._stop = stop
        # By length of the matched prefix: the longest shorter one that is also its suffix ...
        self._borders = [0]
        # ... and the longest of those that the mismatched character may follow, or -1.
        self._falls = [-1]

    def fall(self, length: int) -> int:
        """Return how much stays matched where another character than stop[length] follows.

        It is to be compared with that character again; -1 where the character begins nothing.
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
