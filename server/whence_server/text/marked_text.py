"""An output's text together with its special tokens, which the output itself leaves out.

Models write some marks of tool calls as special tokens: `[TOOL_CALLS]`, `<|python_tag|>`.
"""

from bisect import bisect_right
from collections.abc import Sequence


class MarkedText:
    """Text of an output with special tokens where they were generated.

    Attributes:
        text: the text, with the special tokens' own texts.
    """

    def __init__(self, output: str, special_tokens: Sequence[tuple[int, str]] = ()) -> None:
        """Put the text together.

        Special tokens after the last byte of the output are left out: they end it.

        Args:
            output: the output's text.
            special_tokens: the output's special tokens in order, each as its place, in UTF-8 bytes
                of the output, and its text.
        """
        data = output.encode()
        # Pieces of the output: place in `text`, place in the output's bytes, and the piece.
        self._pieces: list[tuple[int, int, str]] = []
        parts: list[str] = []
        begin = length = 0
        for place, name in special_tokens:
            end = max(begin, _find_boundary(data, place))
            if end >= len(data):
                break
            piece = data[begin:end].decode()
            self._pieces.append((length, begin, piece))
            parts += [piece, name]
            length += len(piece) + len(name)
            begin = end
        piece = data[begin:].decode()
        self._pieces.append((length, begin, piece))
        self.text = "".join([*parts, piece])
        self._counted = (0, 0, 0)

    def count_output_bytes(self, place: int) -> int:
        """Return the number of the output's UTF-8 bytes before a place in `text`.

        Places in ascending order take time in proportion to the text, all together.
        """
        index = bisect_right(self._pieces, place, key=lambda piece: piece[0]) - 1
        at, begin, piece = self._pieces[index]
        num_characters = min(place - at, len(piece))
        counted_index, counted, num_bytes = self._counted
        if counted_index != index or counted > num_characters:
            counted = num_bytes = 0
        num_bytes += len(piece[counted:num_characters].encode())
        self._counted = (index, num_characters, num_bytes)
        return begin + num_bytes


def _find_boundary(data: bytes, place: int) -> int:
    """Return the first place from here on that is not inside of a character."""
    while place < len(data) and data[place] & 0xC0 == 0x80:
        place += 1
    return min(place, len(data))
