"""Turns token ids into text one by one; the pieces join to the tokenizer's own decode of all.

Two strategies. Byte-level tokenizers decode to bytes, whose text Python's incremental decoder
gives exactly. For every other decoder a short window of tokens is decoded with the new one and
without it, and the difference is what the new one adds. The one exception are byte tokens that
are not valid UTF-8: see `WindowedDetokenizer`.
"""

import codecs
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Protocol, TypeAlias

REPLACEMENT = "\ufffd"

# As many tokens as it may take until a decoder that strips text at its beginning, or repairs
# bytes at its end, is through with that.
_MAX_CONTEXT = 16

Decode: TypeAlias = Callable[[list[str]], str]


class Detokenizer(Protocol):
    """The decoding of one sequence."""

    @property
    def num_held_bytes(self) -> int:
        """Raw bytes taken in that are not text yet."""

    @property
    def held_text(self) -> str:
        """Return what `flush` would return."""

    def push(self, token_id: int) -> str:
        """Take the next token; returns the text that became certain with it."""

    def flush(self) -> str:
        """Return the rest, as no more tokens come; incomplete characters become U+FFFD."""


class ByteLevelDetokenizer:
    """For decoders of type ByteLevel: token, raw bytes, UTF-8.

    Malformed bytes become U+FFFD as in `tokenizers`: one for each maximal subpart (Unicode,
    section 3.9), which is also what Python's `errors="replace"` does.
    """

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        """Begin a sequence; `token_bytes` is by id, b"" for tokens that add no text."""
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def num_held_bytes(self) -> int:
        """At most three: a character's beginning."""
        return len(self._utf8.getstate()[0])

    @property
    def held_text(self) -> str:
        """Return what `flush` would return."""
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
    """For any other decoder.

    It has to be local: text may depend on a token's neighbours and on being the first, as it
    does in Metaspace, WordPiece and Strip, but a token must not change text that earlier ones
    made (Replace after Fuse with a pattern that spans tokens).

    Byte tokens, such as <0xE2> where the decoder has a ByteFallback, become text with the byte
    that completes a character. A byte that belongs to no character becomes one U+FFFD, and the
    characters beside it stay. `tokenizers` decodes a run of byte tokens only as a whole, and
    turns every byte of a run with a single malformed one into U+FFFD: text that has been sent
    could not be taken back then.
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
            tokens: by id; None for an id that adds no text.
            byte_values: the byte of each byte token, by id.
            holds_replacement: U+FFFD at the end of a text may be a character's first bytes,
                as it is where ByteLevel is one part of the decoder among others.
        """
        self._decode = decode
        self._tokens = tokens
        self._byte_values = byte_values
        self._holds_replacement = holds_replacement
        # The last tokens; those of one character, which may be several bytes, stay together.
        self._context: list[list[str]] = []
        self._context_text = ""
        # A character's first bytes, and their tokens.
        self._bytes = b""
        self._byte_tokens: list[str] = []

    @property
    def num_held_bytes(self) -> int:
        """At most three: a character's beginning; held U+FFFD are not counted."""
        return len(self._bytes)

    @property
    def held_text(self) -> str:
        """Return what `flush` would return."""
        decoded = self._decode([token for unit in self._context for token in unit])
        return REPLACEMENT * len(self._bytes) + decoded[len(self._context_text) :]

    def push(self, token_id: int) -> str:
        """Take the next token; ids beyond the vocabulary add nothing."""
        token = self._tokens[token_id] if token_id < len(self._tokens) else None
        if token is None:
            # Left out here: it neither begins a text nor ends a run of bytes.
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
        """Return U+FFFD for each byte of a character that will not be completed."""
        count, self._bytes, self._byte_tokens = len(self._bytes), b"", []
        # As a token of its own, which ends the decoder's run of byte tokens.
        return "".join(self._add([REPLACEMENT]) for _ in range(count))

    def _add(self, unit: list[str]) -> str:
        """Return what a token, or a character's bytes, add to the text."""
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
    """The bytes since the last character."""

    BEGUN = auto()
    """A character's first bytes."""
    COMPLETE = auto()
    """Exactly one character."""
    MALFORMED = auto()


def _classify_utf8(data: bytes) -> _Utf8State:
    try:
        character = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return _Utf8State.MALFORMED
    return _Utf8State.COMPLETE if character else _Utf8State.BEGUN
