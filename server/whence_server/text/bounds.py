"""The most bytes of a text that one token can stand for, where there is a most.

A text with more bytes than all tokens of a prompt can stand for is too long before it is
tokenized. Many tokenizers leave out part of a text (white space, say) or make one token of any
unknown word: there is no bound for them. `max_token_bytes` gives one only where every part of the
tokenizer is known to keep what it reads.
"""

import json
from typing import Any

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

NORMALIZERS = {"NFC": 4, "NFD": 3, "Lowercase": 3, "Prepend": 1}
"""By how much each can shorten a text's UTF-8: three bytes of the Kelvin sign become one K."""

KEEPING = {"ByteLevel", "Metaspace", "Split", "Digits", "Punctuation", "UnicodeScripts", "Sequence"}
"""Pre-tokenizers that drop nothing, unless a behavior of "Removed" says otherwise."""


def max_token_bytes(tokenizer: Tokenizer) -> int | None:
    """Return how many bytes of a text, in UTF-8, one token stands for at the most, or None."""
    shrinking = _shrinking(_state(tokenizer.normalizer))
    if shrinking is None or not _keeps(_state(tokenizer.pre_tokenizer)):
        return None
    added = tokenizer.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if not _knows_every_byte(tokenizer, vocabulary):
        return None
    names = [_normalized(tokenizer, token) for token in added]
    longest = max((len(name.encode()) for name in (*vocabulary, *names)), default=0)
    return longest * shrinking or None


def _state(part: Any) -> dict[str, Any] | None:
    state: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return state


def _shrinking(normalizer: dict[str, Any] | None) -> int | None:
    """By how much a normalizer can shorten a text, or None where that has no bound."""
    if normalizer is None:
        return 1
    kind = normalizer["type"]
    if kind == "Sequence":
        factor = 1
        for part in normalizer["normalizers"]:
            by = _shrinking(part)
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


def _keeps(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return all(_keeps(part) for part in pre_tokenizer["pretokenizers"])
    return kind in KEEPING and pre_tokenizer.get("behavior", "") != "Removed"


def _knows_every_byte(tokenizer: Tokenizer, vocabulary: dict[str, int]) -> bool:
    """Tell whether there is no text that has to become an unknown token."""
    if type(tokenizer.model).__name__ != "BPE":
        return False
    if tokenizer.model.byte_fallback:
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    by_bytes = "ByteLevel" in json.dumps(_state(tokenizer.pre_tokenizer))
    return by_bytes and vocabulary.keys() >= set(ByteLevel.alphabet())


def _normalized(tokenizer: Tokenizer, token: Any) -> str:
    """An added token as it is looked for: in the text, or in what the normalizer makes of it."""
    if token.normalized and tokenizer.normalizer is not None:
        made: str = tokenizer.normalizer.normalize_str(token.content)
        return max(str(token.content), made, key=len)
    content: str = token.content
    return content
