"""The text of one sequence as it grows: decoded, cut at a stop string, measured in bytes."""

from collections.abc import Sequence
from typing import NamedTuple

from whence_server.text.detokenizer import Detokenizer
from whence_server.text.stops import StopSearch


class Piece(NamedTuple):
    """What one token did to the text."""

    text: str
    """Text that became certain with it; the pieces join to exactly the output."""
    begin_byte: int
    end_byte: int
    """The bytes of the output that this token itself made, [begin, end), in UTF-8.

    Contiguous from piece to piece. They may reach beyond the text released so far, and, where
    a stop string cut the output, beyond its end: clip them to the final text.
    """
    stop: str | None
    """The stop string that this token completed: it is the sequence's last."""


class SequenceText:
    """The output text of one sequence.

    The bytes of a character that is not complete yet count as they come, raw; where they turn
    out to be none and become U+FFFD, the token that settles it takes the difference.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._search = StopSearch(stop) if stop else None
        self._released: list[str] = []
        self._num_decoded_bytes = 0
        self._end_byte = 0
        self._ended = False

    @property
    def text(self) -> str:
        """Everything released so far."""
        return "".join(self._released)

    def push(self, token_id: int, *, last: bool) -> Piece:
        """Takes the next token.

        With `last`, what was held back is released: an incomplete character as U+FFFD, and
        the beginning of a stop string that was never completed.

        Raises:
            RuntimeError: the sequence has ended already.
        """
        if self._ended:
            raise RuntimeError("the sequence has ended: no token may follow its last one")
        text = self._detokenizer.push(token_id)
        if last:
            text += self._detokenizer.flush()
        self._num_decoded_bytes += len(text) if text.isascii() else len(text.encode())
        begin_byte = self._end_byte
        # Never backwards: a decoder may strip a byte that counted when it came.
        num_bytes = self._num_decoded_bytes + self._detokenizer.num_held_bytes
        end_byte = self._end_byte = max(begin_byte, num_bytes)
        stop = None
        if self._search is not None:
            text, stop = self._search.feed(text)
            if last and stop is None:
                text += self._search.flush()
        self._ended = last or stop is not None
        if text:
            self._released.append(text)
        return Piece(text, begin_byte, end_byte, stop)
