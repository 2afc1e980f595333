"""Turns token ids into text one by one; the pieces join to the tokenizer's own decode of all.

Two strategies. Byte-level tokenizers decode to bytes, whose text Python's incremental decoder
gives exactly. For every other decoder a short window of ids is decoded with the new id and
without it, and the difference is what the new id adds.
"""

import codecs
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol, TypeAlias

REPLACEMENT = "\ufffd"

# As many tokens as it may take until a decoder that strips text at its beginning, or repairs
# bytes at its end, is through with that.
_MAX_CONTEXT = 16

Decode: TypeAlias = Callable[[list[int]], str]


class Detokenizer(Protocol):
    """The decoding of one sequence."""

    @property
    def num_held_bytes(self) -> int:
        """Raw bytes taken in that are not text yet."""

    def push(self, token_id: int) -> str:
        """Takes the next token; returns the text that became certain with it."""

    def flush(self) -> str:
        """Returns the rest, as no more tokens come; incomplete characters become U+FFFD."""


class ByteLevelDetokenizer:
    """For decoders of type ByteLevel: token, raw bytes, UTF-8.

    Malformed bytes become U+FFFD as in `tokenizers`: one for each maximal subpart (Unicode,
    section 3.9), which is also what Python's `errors="replace"` does.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        """Begins a sequence; `token_bytes` is by id, b"" for tokens that add no text."""
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def num_held_bytes(self) -> int:
        """At most three: a character's beginning."""
        return len(self._utf8.getstate()[0])

    def push(self, token_id: int) -> str:
        """Takes the next token; ids beyond the vocabulary add nothing."""
        if token_id >= len(self._token_bytes):
            return ""
        return self._utf8.decode(self._token_bytes[token_id])

    def flush(self) -> str:
        """Returns U+FFFD for an incomplete character, else nothing."""
        return self._utf8.decode(b"", final=True)


class TokenKind(IntEnum):
    """What a decoder makes of a token."""

    SILENT = 0
    """No text: a special token, or an id that has no token."""
    TEXT = 1
    BYTE = 2
    """One raw byte, such as <0xE2>, where the decoder has a ByteFallback."""


class WindowedDetokenizer:
    """For any other decoder.

    It has to be local: text may depend on a token's neighbours and on being the first, as it
    does in Metaspace, WordPiece, Strip and ByteFallback, but a token must not change text
    that earlier ones made (Replace after Fuse with a pattern that spans tokens).

    ByteFallback decodes a run of byte tokens as a whole: one malformed byte turns every byte
    of the run into U+FFFD. So a run is held back until it ends.
    """

    def __init__(
        self,
        decode: Decode,
        *,
        kinds: Sequence[TokenKind],
        holds_replacement: bool = False,
    ) -> None:
        """Begins a sequence.

        Args:
            decode: the tokenizer's own.
            kinds: by token id.
            holds_replacement: U+FFFD at the end of a text may be a character's first bytes,
                as it is where ByteLevel is one part of the decoder among others.
        """
        self._decode = decode
        self._kinds = kinds
        self._holds_replacement = holds_replacement
        self._context: list[int] = []
        self._context_text = ""
        self._run: list[int] = []

    @property
    def num_held_bytes(self) -> int:
        """The byte tokens of a run that has not ended; held U+FFFD are not counted."""
        return len(self._run)

    def push(self, token_id: int) -> str:
        """Takes the next token; ids beyond the vocabulary add nothing."""
        kind = self._kinds[token_id] if token_id < len(self._kinds) else TokenKind.SILENT
        if kind == TokenKind.SILENT:
            # Left out here: it neither begins a text nor ends a run of bytes.
            return ""
        if kind == TokenKind.BYTE:
            self._run.append(token_id)
            return ""
        token_ids = [*self._context, *self._run, token_id]
        text = self._certain(token_ids)
        added = text[len(self._context_text) :]
        self._run = []
        self._keep_context(token_ids)
        return added

    def flush(self) -> str:
        """Returns what was held back."""
        text = self._decode(self._context + self._run)
        added = text[len(self._context_text) :]
        self._context_text = text
        self._run = []
        return added

    def _certain(self, token_ids: list[int]) -> str:
        text = self._decode(token_ids)
        if self._holds_replacement and text.endswith(REPLACEMENT):
            return text[:-1]
        return text

    def _keep_context(self, token_ids: list[int]) -> None:
        """Keeps the fewest last ids that have text: the next one is not the first then."""
        # A character has up to four bytes, and they may be spread over as many tokens.
        shortest = 4 if self._holds_replacement else 1
        for length in range(shortest, _MAX_CONTEXT + 1):
            self._context = token_ids[-length:]
            self._context_text = self._certain(self._context)
            if self._context_text or length >= len(token_ids):
                return
