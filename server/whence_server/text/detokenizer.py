"""Detokenizing token by token; the pieces join to the tokenizer's own decode of all.

Byte-level tokenizers decode to bytes, which Python's incremental decoder turns into text exactly.
For every other decoder, a short window of tokens is decoded with the new token and without it, and
the difference is the new text. Byte tokens that are not valid UTF-8 are the one exception, which
`WindowedDetokenizer` describes.
"""

import codecs
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Protocol, TypeAlias

REPLACEMENT = "\ufffd"

# Maximum number of tokens at the beginning or end of a text that a decoder strips or repairs.
_MAX_CONTEXT = 16

Decode: TypeAlias = Callable[[list[str]], str]


class Detokenizer(Protocol):
    """Incremental decoder of one sequence."""

    @property
    def num_held_bytes(self) -> int:
        """Number of raw bytes that are not text yet."""

    @property
    def held_text(self) -> str:
        """Text that `flush` would return."""

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that became certain with it."""

    def flush(self) -> str:
        """Return the rest, as no more tokens come; incomplete characters become U+FFFD."""


class ByteLevelDetokenizer:
    """Detokenizer for decoders of type ByteLevel.

    Malformed bytes become U+FFFD as in `tokenizers`: one for each maximal subpart (Unicode,
    section 3.9), which is also what Python's `errors="replace"` does.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        """Begin a sequence; `token_bytes` is by id, b"" for tokens that add no text."""
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def num_held_bytes(self) -> int:
        """Number of bytes of an incomplete character, at most 3."""
        return len(self._utf8.getstate()[0])

    @property
    def held_text(self) -> str:
        """Text that `flush` would return."""
        return self._utf8.getstate()[0].decode(errors="replace")

    def push(self, token_id: int) -> str:
        """Take the next token; ids beyond the vocabulary add nothing."""
        if token_id >= len(self._token_bytes):
            return ""
        return self._utf8.decode(self._token_bytes[token_id])

    def flush(self) -> str:
        """Return U+FFFD for an incomplete character, else nothing."""
        return self._utf8.decode(b"", final=True)


class WindowedDetokenizer:
    """Detokenizer for all other decoders.

    The decoder must be local: a token's text may depend on its neighbours and on being the first,
    as in Metaspace, WordPiece and Strip, but a token must not change the text of earlier ones (as
    Replace after Fuse does with a pattern that spans tokens).

    Byte tokens (<0xE2> and the like, with a ByteFallback decoder) become text with the byte that
    completes a character. A byte that belongs to no character becomes one U+FFFD, and the
    characters beside it stay. `tokenizers` decodes a run of byte tokens as a whole and turns all of
    a run with one malformed byte into U+FFFD, which would change text that was already sent.
    """

    def __init__(
        self,
        decode: Decode,
        tokens: Sequence[str | None],
        byte_values: Mapping[int, int],
        *,
        holds_replacement: bool = False,
    ) -> None:
        """Begin a sequence.

        Args:
            decode: the tokenizer's decoder.
            tokens: tokens by id; None for an id that adds no text.
            byte_values: byte of each byte token, by id.
            holds_replacement: True if U+FFFD at the end of a text may be a character's first
                bytes, as with ByteLevel as one of several parts of the decoder.
        """
        self._decode = decode
        self._tokens = tokens
        self._byte_values = byte_values
        self._holds_replacement = holds_replacement
        # The last tokens; the byte tokens of one character form one unit.
        self._context: list[list[str]] = []
        self._context_text = ""
        # A character's first bytes, and their tokens.
        self._bytes = b""
        self._byte_tokens: list[str] = []

    @property
    def num_held_bytes(self) -> int:
        """Number of bytes of an incomplete character, at most 3; held U+FFFD are not counted."""
        return len(self._bytes)

    @property
    def held_text(self) -> str:
        """Text that `flush` would return."""
        decoded = self._decode([token for unit in self._context for token in unit])
        return REPLACEMENT * len(self._bytes) + decoded[len(self._context_text) :]

    def push(self, token_id: int) -> str:
        """Take the next token; ids beyond the vocabulary add nothing."""
        token = self._tokens[token_id] if token_id < len(self._tokens) else None
        if token is None:
            # The token is ignored: it neither begins a text nor ends a run of bytes.
            return ""
        byte = self._byte_values.get(token_id)
        if byte is None:
            return self._give_up() + self._add([token])
        return self._push_byte(token, bytes([byte]))

    def flush(self) -> str:
        """Return what was held back."""
        added = self._give_up()
        text = self._decode([token for unit in self._context for token in unit])
        added += text[len(self._context_text) :]
        self._context_text = text
        return added

    def _push_byte(self, token: str, byte: bytes) -> str:
        state = _classify_utf8(self._bytes + byte)
        if state is _Utf8State.MALFORMED and self._bytes:
            return self._give_up() + self._push_byte(token, byte)
        self._bytes += byte
        self._byte_tokens.append(token)
        if state is _Utf8State.MALFORMED:
            return self._give_up()
        if state is _Utf8State.BEGUN:
            return ""
        character, self._bytes, self._byte_tokens = self._byte_tokens, b"", []
        return self._add(character)

    def _give_up(self) -> str:
        """Add U+FFFD for each byte of a character that will not be completed; return the text."""
        count, self._bytes, self._byte_tokens = len(self._bytes), b"", []
        # U+FFFD as a separate token ends the decoder's run of byte tokens.
        return "".join(self._add([REPLACEMENT]) for _ in range(count))

    def _add(self, unit: list[str]) -> str:
        """Add a token, or a character's byte tokens; return the new text."""
        units = [*self._context, unit]
        text = self._take_certain(units)
        added = text[len(self._context_text) :]
        self._keep_context(units)
        return added

    def _take_certain(self, units: Sequence[Sequence[str]]) -> str:
        text = self._decode([token for unit in units for token in unit])
        if self._holds_replacement and text.endswith(REPLACEMENT):
            return text[:-1]
        return text

    def _keep_context(self, units: list[list[str]]) -> None:
        """Keep the fewest last ones that have text: the next one is not the first then."""
        # A character has up to four bytes, and they may be spread over as many tokens.
        shortest = 4 if self._holds_replacement else 1
        for length in range(shortest, _MAX_CONTEXT + 1):
            self._context = units[-length:]
            self._context_text = self._take_certain(self._context)
            if self._context_text or length >= len(units):
                return


class _Utf8State(Enum):
    """State of the bytes after the last character."""

    BEGUN = auto()
    """First bytes of a character."""
    COMPLETE = auto()
    """Exactly one complete character."""
    MALFORMED = auto()


def _classify_utf8(data: bytes) -> _Utf8State:
    try:
        character = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return _Utf8State.MALFORMED
    return _Utf8State.COMPLETE if character else _Utf8State.BEGUN
