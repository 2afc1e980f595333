"""Upper bound of the bytes of text that one token represents, for tokenizers that have one.

A text with more bytes than all tokens of a prompt can stand for is too long before it is
tokenized. Many tokenizers leave out any part of a text, or make one token of any unknown word:
there is no bound for them. `find_text_bound` gives one only where every part of the tokenizer is
known to keep what it reads, but for single bytes that are not counted.
"""

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

NORMALIZERS = {"NFC": 4, "NFD": 3, "Lowercase": 3, "Prepend": 1}
"""Factor by which each shortens a text's UTF-8 at most: 3 bytes of the Kelvin sign become K."""

KEEPING = {"ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "UnicodeScripts", "Sequence"}
"""Pre-tokenizers that drop nothing, unless their behavior is "Removed"."""

_WHITE_SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())


@dataclass(frozen=True, slots=True)
class TextBound:
    """Bound on the text that tokens of a tokenizer represent.

    Attributes:
        max_token_bytes: maximum number of UTF-8 bytes of text that one token represents.
        uncounted: bytes that may be dropped: those without a token, and white space if an added
            token strips it.
    """

    max_token_bytes: int
    uncounted: bytes = b""

    def count_bytes(self, text: str) -> int:
        """Return how many bytes of a text its tokens have to stand for, at the least."""
        return len(text.encode(errors="surrogatepass").translate(None, self.uncounted))


def find_text_bound(tokenizer: Tokenizer) -> TextBound | None:
    """Return the tokenizer's bound, or None where a token can stand for any number of bytes."""
    normalizer = _read_state(tokenizer.normalizer)
    shrinking = _measure_shrinking(normalizer)
    if shrinking is None or not _keeps_all(_read_state(tokenizer.pre_tokenizer)):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    uncounted = _find_bytes_without_token(tokenizer, vocabulary)
    # A normalizer may make bytes without a token of others.
    if uncounted is None or (uncounted and normalizer is not None):
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):
        uncounted = bytes({*uncounted, *_WHITE_SPACE.encode()})
    # A byte-level token has one letter for each byte.
    sizes = [len(name.encode() if tokenizer.model.byte_fallback else name) for name in vocabulary]
    sizes += [len(_normalize(tokenizer, token).encode()) for token in added]
    longest = max(sizes, default=0)
    return TextBound(longest * shrinking, uncounted) if longest else None


def _read_state(part: Any) -> dict[str, Any] | None:
    state: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return state


def _measure_shrinking(normalizer: dict[str, Any] | None) -> int | None:
    """Return the factor by which a normalizer can shorten a text; None if it has no bound."""
    if normalizer is None:
        return 1
    kind = normalizer["type"]
    if kind == "Sequence":
        factor = 1
        for part in normalizer["normalizers"]:
            by = _measure_shrinking(part)
            if by is None:
                return None
            factor *= by
        return factor
    if kind == "Replace":
        pattern, content = normalizer["pattern"].get("String"), normalizer["content"]
        if not pattern or not content:
            return None
        return -(-len(pattern.encode()) // len(content.encode()))
    return NORMALIZERS.get(kind)


def _keeps_all(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return all(_keeps_all(part) for part in pre_tokenizer["pretokenizers"])
    return kind in KEEPING and pre_tokenizer.get("behavior", "") != "Removed"


def _find_bytes_without_token(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> bytes | None:
    """Return the bytes that vanish; None where unknown text may become a single unknown token."""
    model = tokenizer.model
    if type(model).__name__ != "BPE":
        return None
    if model.byte_fallback:
        return b"" if all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)) else None
    if "ByteLevel" not in json.dumps(_read_state(tokenizer.pre_tokenizer)):
        return None
    missing = bytes(byte for byte, letter in _make_alphabet().items() if letter not in vocabulary)
    return missing if model.unk_token is None or not missing else None


def _make_alphabet() -> dict[int, str]:
    """Return the letter that stands for each byte in a byte-level vocabulary."""
    letters = sorted(ByteLevel.alphabet())
    own = {ord(letter): letter for letter in letters if ord(letter) < 256}
    others = (letter for letter in letters if ord(letter) >= 256)
    return own | {byte: next(others) for byte in range(256) if byte not in own}


def _normalize(tokenizer: Tokenizer, token: Any) -> str:
    """Return the form of an added token that is searched for: normalized if it is normalized."""
    content: str = token.content
    if token.normalized and tokenizer.normalizer is not None:
        made: str = tokenizer.normalizer.normalize_str(content)
        return max(content, made, key=len)
    return content
