"""The growing text of one sequence: decoded, truncated at a stop string, measured in bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from whence_server.text.detokenizer import REPLACEMENT, Detokenizer
from whence_server.text.stops import Searched, StopSearch


class Piece(NamedTuple):
    """Change of the text by one token."""

    text: str
    """Text that became certain with the token; the pieces join to exactly the output."""
    begin_byte: int
    end_byte: int
    """Range of the output's UTF-8 bytes that come from this token, [begin, end).

    Ranges are contiguous. They may exceed the text released so far, and the output if a stop
    string truncated it: clip them to the final text.
    """
    stop: str | None
    """Stop string that this token completed, which ends the sequence; None if none."""


@dataclass(frozen=True, slots=True)
class UnseenText:
    """Text that is not part of the output, but in which stop strings are searched.

    With the output it forms the text that transformers' `stop_strings` match: every token as
    inside a text, special tokens included.
    """

    special_tokens: Mapping[int, str] = field(default_factory=dict)
    """Text of special tokens, by id."""
    inside: Sequence[bytes] = ()
    """Bytes of the other tokens inside a text, by id; empty if the decoder never strips the
    beginning of a text."""

    def find_before(self, token_id: int, begin: str) -> str:
        """Return what the decoder has stripped from a token at the beginning of an output.

        Args:
            token_id: the token's id.
            begin: the rest of the token's text.
        """
        if token_id >= len(self.inside) or token_id in self.special_tokens:
            return ""
        inside = self.inside[token_id].decode(errors="replace")
        if REPLACEMENT in inside or not inside.endswith(begin):
            return ""
        return inside.removesuffix(begin)


NOTHING_UNSEEN = UnseenText()


class SequenceText:
    """Output text of one sequence.

    Stop strings are searched in the output and in the unseen text, from the first token of the
    sequence on: none begins in the prompt.

    Raw bytes of an incomplete character are counted as they arrive. If they become U+FFFD, the
    token that decides it gets the difference in bytes.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        stop: Sequence[str] = (),
        unseen: UnseenText = NOTHING_UNSEEN,
    ) -> None:
        self._detokenizer = detokenizer
        self._search = StopSearch(stop) if stop else None
        self._unseen = unseen
        self._released: list[str] = []
        self._num_decoded_bytes = 0
        self._end_byte = 0
        self._ended = False
        # Text that was held back when the last special token was pushed.
        self._passed = ""

    @property
    def text(self) -> str:
        """Text released so far."""
        return "".join(self._released)

    @property
    def end_byte(self) -> int:
        """End of the newest token's bytes in the output."""
        return self._end_byte

    def push(self, token_id: int, *, last: bool) -> Piece:
        """Take the next token.

        With `last`, held text is released: an incomplete character as U+FFFD, and the beginning
        of a stop string that was never completed.

        Raises:
            RuntimeError: the sequence has ended.
        """
        if self._ended:
            raise RuntimeError("the sequence has ended: no token may follow its last one")
        begin_byte = self._end_byte
        special = self._unseen.special_tokens.get(token_id)
        if special is None or self._search is None:
            text, stop = self._take(token_id, last=last)
        else:
            text, stop = self._take_special(self._search, special, last=last)
        self._ended = last or stop is not None
        if text:
            self._released.append(text)
        return Piece(text, begin_byte, self._end_byte, stop)

    def _take(self, token_id: int, *, last: bool) -> Searched:
        text = self._detokenizer.push(token_id)
        # Only the first text of an output is stripped.
        before = "" if self._num_decoded_bytes else self._unseen.find_before(token_id, text)
        if last:
            text += self._detokenizer.flush()
        self._count(text)
        if self._search is None:
            return Searched(text, None)
        released = ""
        if self._passed:
            # Text that has been searched before the special token is not searched again.
            stays = text.startswith(self._passed)
            released = self._search.settle(output=stays)
            text = text.removeprefix(self._passed)
            self._passed = ""
        searched = self._search.feed(before, output=False)
        if searched.stop is None:
            released += searched.text
            searched = self._search.feed(text)
        released += searched.text
        if last and searched.stop is None:
            released += self._search.flush()
        return Searched(released, searched.stop)

    def _take_special(self, search: StopSearch, name: str, *, last: bool) -> Searched:
        """Search a special token's name, after the text that is held back before it.

        A later token may still complete a character with the held bytes. Until then they are
        searched as incomplete, so that no stop string spans them.
        """
        held = self._detokenizer.held_text
        searched = Searched("", None)
        released = ""
        if held and not self._passed:
            self._passed = held
            searched = search.feed(held, output=None)
            released += searched.text
        if searched.stop is None:
            searched = search.feed(name, output=False)
            released += searched.text
        if last or searched.stop is not None:
            self._detokenizer.flush()
            released += search.settle(output=True)
            self._count(held)
        if last and searched.stop is None:
            released += search.flush()
        return Searched(released, searched.stop)

    def _count(self, text: str) -> None:
        """Add a token's text to the byte count of the output."""
        self._num_decoded_bytes += len(text) if text.isascii() else len(text.encode())
        # The count never decreases: a decoder may strip a byte that was already counted.
        num_bytes = self._num_decoded_bytes + self._detokenizer.num_held_bytes
        self._end_byte = max(self._end_byte, num_bytes)
