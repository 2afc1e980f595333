"""Finds where a stop string ends a text that arrives in pieces.

Knuth, Morris and Pratt's matching ("Fast pattern matching in strings", 1977), one automaton
for each stop string: it never looks at a character twice, and its state is exactly what has
to be known here, the length of the longest suffix that might still begin the stop.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Searched(NamedTuple):
    """What became certain with one more piece of text."""

    text: str
    """Text that no stop string can claim any more; together with what came before."""
    stop: str | None
    """The stop string that was completed: the text ends before it."""


class StopSearch:
    """Cuts a text before the stop string that is completed first.

    Of those completed by the same character it is the one that begins earliest. The outcome
    does not depend on how the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Prepares the search.

        Raises:
            ValueError: a stop string is empty.
        """
        self._automata = [_Automaton(stop) for stop in stops]
        self._held = ""

    def feed(self, text: str) -> Searched:
        """Takes the next piece; to be called until a stop is found."""
        stop: str | None = None
        stop_end = held_length = 0
        for automaton in self._automata:
            end = automaton.feed(text)
            if end is not None:
                if stop is None or (end, -len(automaton.stop)) < (stop_end, -len(stop)):
                    stop, stop_end = automaton.stop, end
            elif automaton.num_matched > held_length:
                held_length = automaton.num_matched
        text = self._held + text
        if stop is not None:
            cut = len(self._held) + stop_end - len(stop)
            self._held = ""
            return Searched(text[:cut], stop)
        cut = len(text) - held_length
        self._held = text[cut:]
        return Searched(text[:cut], None)

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """Matches one stop string.

    Attributes:
        stop: what it looks for.
        num_matched: length of the longest proper prefix of `stop` that the text ends with.
    """

    __slots__ = ("_borders", "num_matched", "stop")

    def __init__(self, stop: str) -> None:
        if not stop:
            raise ValueError("a stop string must not be empty")
        self.stop = stop
        self.num_matched = 0
        # _borders[i]: length of the longest proper prefix of stop[: i + 1] that is also its
        # suffix. Only ever as long as what was matched: long stops cost nothing up front.
        self._borders = [0]

    def feed(self, text: str) -> int | None:
        """Returns the offset in `text` just past the first match, or None."""
        stop = self.stop
        matched = self.num_matched
        offset = 0
        while offset < len(text):
            if matched == 0:
                offset = text.find(stop[0], offset)
                if offset < 0:
                    break
            elif stop[matched] != text[offset]:
                matched = self._border(matched)
                continue
            matched += 1
            offset += 1
            if matched == len(stop):
                return offset
        self.num_matched = matched
        return None

    def _border(self, length: int) -> int:
        """The longest proper border of the stop's first `length` characters."""
        borders, stop = self._borders, self.stop
        while len(borders) < length:
            character = stop[len(borders)]
            border = borders[-1]
            while border and stop[border] != character:
                border = borders[border - 1]
            borders.append(border + (stop[border] == character))
        return borders[length - 1]
