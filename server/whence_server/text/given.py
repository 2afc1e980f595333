"""The growing text of a sequence whose text is given, and not decoded from token ids."""

from collections.abc import Sequence

from whence_server.text.sequence import Piece, SequenceText


class GivenText(SequenceText):
    """Output text of one sequence, as an upstream sends it, truncated at a stop string."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """Begin a sequence, which ends before the first stop string."""
        self._given = _GivenPieces()
        super().__init__(self._given, stop)

    @property
    def holds_text(self) -> bool:
        """True if text is held back that may begin a stop string."""
        return self.end_byte > len(self.text.encode())

    def push_text(self, text: str, *, last: bool) -> Piece:
        """Take the next text; see `SequenceText.push`."""
        self._given.text = text
        return self.push(0, last=last)


class _GivenPieces:
    """Decoder of a token whose text is known already."""

    text = ""
    num_held_bytes = 0
    held_text = ""

    def push(self, token_id: int) -> str:  # noqa: ARG002 - the interface of a decoder
        return self.text

    def flush(self) -> str:
        return ""
