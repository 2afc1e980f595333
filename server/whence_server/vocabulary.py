"""Raw bytes and text of each token id of a tokenizer."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

_FRAGMENT = re.compile("[\udc80-\udcff]+")
"""Bytes that are not UTF-8, decoded with `surrogateescape` (PEP 383)."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def list_decoder_types(tokenizer: Tokenizer) -> list[str]:
    """Names the parts of the tokenizer's decoder, in the order in which they are applied."""
    if tokenizer.decoder is None:
        return []
    return list(_list_types(json.loads(tokenizer.decoder.__getstate__())))


def _list_types(decoder: dict[str, object]) -> Iterator[str]:
    parts = decoder.get("decoders")
    if isinstance(parts, list):
        for part in parts:
            yield from _list_types(part)
    else:
        yield str(decoder["type"])


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Return whether every token decodes to the same bytes beside any other token."""
    types = list_decoder_types(tokenizer)
    return "ByteLevel" in types and set(types) <= {"ByteLevel", "Fuse"}


def depends_on_next(tokenizer: Tokenizer) -> bool:
    """Return whether a token's text depends on the tokens after it, as with a suffix of words."""
    return bool({"BPEDecoder", "CTC"} & set(list_decoder_types(tokenizer)))


def list_special_tokens(tokenizer: Tokenizer) -> dict[int, AddedToken]:
    """Return the tokens that add no text to an output, by id."""
    added = tokenizer.get_added_tokens_decoder()
    return {
        token_id: token
        for token_id, token in added.items()
        # The decoder identifies special tokens by name: one that the normalizer changes is text.
        if token.special and tokenizer.id_to_token(token_id) == token.content
    }


def list_visible_tokens(tokenizer: Tokenizer) -> list[str | None]:
    """Return the tokens by id, as the decoder gets them; None for one that adds no text."""
    ids = tokenizer.get_vocab().values()
    tokens: list[str | None] = [None] * (max(ids, default=-1) + 1)
    special = list_special_tokens(tokenizer)
    for token_id in ids:
        if token_id not in special:
            tokens[token_id] = tokenizer.id_to_token(token_id)
    return tokens


def map_byte_values(tokenizer: Tokenizer) -> dict[int, int]:
    """Return the byte of each token such as <0xE2>; empty without a ByteFallback decoder."""
    special = list_special_tokens(tokenizer)
    raw = _map_byte_tokens(tokenizer)
    return {token_id: byte[0] for token_id, byte in raw.items() if token_id not in special}


def map_special_texts(tokenizer: Tokenizer) -> dict[int, str]:
    """Return the text of each special token inside a text that shows them.

    If the decoder cannot decode the token's name (a byte-level one takes "é" for a single byte),
    the text is the name.
    """
    special = list_special_tokens(tokenizer)
    in_text = _map_byte_level if is_byte_level(tokenizer) else _decode_in_context
    texts = {i: raw.decode(errors="replace") for i, raw in in_text(tokenizer, special)}
    return {i: token.content if "\ufffd" in texts[i] else texts[i] for i, token in special.items()}


def list_vocabulary_bytes(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """Return the raw bytes of the ids below `size`, as they would stand inside a text.

    Special tokens have their name; ids without a token have b"".
    """
    vocabulary = [b""] * size
    in_text = _map_byte_level if is_byte_level(tokenizer) else _decode_in_context
    as_bytes = in_text(tokenizer, tokenizer.get_vocab().values())
    names = ((i, t.content.encode()) for i, t in list_special_tokens(tokenizer).items())
    for token_id, raw in chain(as_bytes, names):
        if token_id < size:
            vocabulary[token_id] = raw
    return vocabulary


class TextBytes(NamedTuple):
    """Bytes that tokens add to an output.

    Attributes:
        inside: bytes of each id inside a text; b"" for special tokens.
        first: bytes of the ids that are different at the beginning of an output, where some
            decoders strip a space.
    """

    inside: list[bytes]
    first: dict[int, bytes]


def read_text_bytes(tokenizer: Tokenizer, size: int) -> TextBytes:
    """Return the bytes of the ids below `size`."""
    inside = list_vocabulary_bytes(tokenizer, size)
    for token_id in list_special_tokens(tokenizer):
        if token_id < size:
            inside[token_id] = b""
    if is_byte_level(tokenizer):
        return TextBytes(inside, {})
    # A byte that is no character by itself cannot be decoded alone, and is never stripped.
    incomplete = {
        token_id for token_id, raw in _map_byte_tokens(tokenizer).items() if raw > b"\x7f"
    }
    alone = {
        token_id: tokenizer.decode([token_id]).encode()
        for token_id, token in enumerate(inside)
        if token and token_id not in incomplete
    }
    return TextBytes(inside, {i: first for i, first in alone.items() if first != inside[i]})


def name_bytes(token: bytes) -> str:
    """Return a token for people to read: what is no UTF-8 is named, as in "<0xF0 0x9F>"."""
    escaped = token.decode("utf-8", "surrogateescape")
    return _FRAGMENT.sub(
        lambda found: f"<{' '.join(f'0x{ord(c) - 0xDC00:02X}' for c in found[0])}>", escaped
    )


def _map_byte_tokens(tokenizer: Tokenizer) -> dict[int, bytes]:
    """Return the byte of each token such as <0xE2>; empty where the decoder has no ByteFallback."""
    if "ByteFallback" not in list_decoder_types(tokenizer):
        return {}
    matches = ((_BYTE_TOKEN.fullmatch(t), i) for t, i in tokenizer.get_vocab().items())
    return {token_id: bytes.fromhex(match[1]) for match, token_id in matches if match}


def _map_byte_level(tokenizer: Tokenizer, token_ids: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """GPT-2's mapping of bytes to characters, reversed.

    Printable Latin-1 characters map to themselves; the alphabet's other characters map, in
    ascending order, to the other bytes.
    """
    alphabet = sorted(ByteLevel.alphabet())
    byte_of = {ord(c): ord(c) for c in alphabet if ord(c) < 256}
    left = (byte for byte in range(256) if byte not in byte_of)
    byte_of |= {ord(c): next(left) for c in alphabet if ord(c) >= 256}
    to_latin1 = {code: chr(byte) for code, byte in byte_of.items()}
    for token_id in token_ids:
        # `get_vocab` may have another name: a normalizer may change an added token.
        token = tokenizer.id_to_token(token_id) or ""
        if all(ord(c) in byte_of for c in token):
            yield token_id, token.translate(to_latin1).encode("latin-1")
        else:
            # The decoder does not change an added token that is plain text.
            yield token_id, token.encode()


def _decode_in_context(
    tokenizer: Tokenizer, token_ids: Iterable[int]
) -> Iterator[tuple[int, bytes]]:
    """Decode each token after another one, for the first of a text may look different."""
    raw = _map_byte_tokens(tokenizer)
    before = tokenizer.encode("a", add_special_tokens=False).ids
    skip = len(tokenizer.decode(before, skip_special_tokens=False))
    for token_id in token_ids:
        if token_id in raw:
            yield token_id, raw[token_id]
        else:
            text: str = tokenizer.decode([*before, token_id], skip_special_tokens=False)
            yield token_id, text[skip:].encode()
