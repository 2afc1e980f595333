"""The text of one sequence as it grows: decoded, cut at a stop string, measured in bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from whence_server.text.detokenizer import REPLACEMENT, Detokenizer
from whence_server.text.stops import Searched, StopSearch


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


@dataclass(frozen=True, slots=True)
class UnseenText:
    """Text of tokens that the output leaves out, and that stop strings are found in.

    Together with the output it is the text that transformers' `stop_strings` match: every
    token as it stands inside a text, special tokens included.
    """

    special_tokens: Mapping[int, str] = field(default_factory=dict)
    """By id."""
    inside: Sequence[bytes] = ()
    """By id, each other token's bytes inside a text, where the decoder strips those that a
    text begins with."""

    def find_before(self, token_id: int, begin: str) -> str:
        """Return what the decoder has stripped from a token at the beginning of an output.

        Args:
            token_id: the token's.
            begin: the text that is left of it.
        """
        if token_id >= len(self.inside) or token_id in self.special_tokens:
            return ""
        inside = self.inside[token_id].decode(errors="replace")
        if REPLACEMENT in inside or not inside.endswith(begin):
            return ""
        return inside.removesuffix(begin)


NOTHING_UNSEEN = UnseenText()


class SequenceText:
    """The output text of one sequence.

    Stop strings are searched in the output and in what it leaves out, from the first token of
    the sequence on: none begins in the prompt.

    The bytes of a character that is not complete yet count as they come, raw; where they turn
    out to be none and become U+FFFD, the token that settles it takes the difference.
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
        # Text that was held back when the special token came that was pushed last.
        self._passed = ""

    @property
    def text(self) -> str:
        """Everything released so far."""
        return "".join(self._released)

    def push(self, token_id: int, *, last: bool) -> Piece:
        """Take the next token.

        With `last`, what was held back is released: an incomplete character as U+FFFD, and
        the beginning of a stop string that was never completed.

        Raises:
            RuntimeError: the sequence has ended already.
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

        A later token may still complete a character with what is held. Until then it is
        searched as if none did, so that no stop string reaches across it.
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
        """Add what a token made to the bytes of the output."""
        self._num_decoded_bytes += len(text) if text.isascii() else len(text.encode())
        # Never backwards: a decoder may strip a byte that counted when it came.
        num_bytes = self._num_decoded_bytes + self._detokenizer.num_held_bytes
        self._end_byte = max(self._end_byte, num_bytes)
