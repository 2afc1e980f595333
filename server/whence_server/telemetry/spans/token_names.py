"""Names of tokens on spans: texts where they are allowed and known, else ids."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

from whence.summary import (
    MAX_CACHED_NAMES,
    TokenNames,
    decode_token,
    make_text_names,
    name_by_id,
)
from whence_server.telemetry.journal import KeptTokens, VocabularyReader

_MOST_VOCABULARIES = 4
_NAMES_AT_ONCE = 1_024


class TokenWords(NamedTuple):
    """Words for the tokens of a generation."""

    names: TokenNames
    """Names for summaries and span names: texts in quotes, or ids."""
    get_text: Callable[[int], str] | None = None
    """Returns a token's text; None where texts are not allowed or not known."""


ID_WORDS = TokenWords(name_by_id)
"""Words for tokens without their text."""


class NameBook:
    """Names of the tokens of each generation, from its tokenizer's vocabulary.

    Args:
        vocabularies: the kept vocabularies; None if spans carry no text.
    """

    def __init__(self, vocabularies: VocabularyReader | None) -> None:
        self._vocabularies = vocabularies
        self._names: dict[str, tuple[KeptTokens, TokenWords]] = {}

    async def find(self, tokenizer_digest: str, position: int) -> TokenWords:
        """Return the words for a generation.

        Args:
            tokenizer_digest: digest in the generation's start.
            position: the journal's position of the generation's start.
        """
        if self._vocabularies is None or not tokenizer_digest:
            return ID_WORDS
        kept = await self._vocabularies.find(tokenizer_digest, position)
        if kept is None:
            return ID_WORDS
        known = self._names.get(tokenizer_digest)
        if known is not None and known[0] is kept:
            return known[1]
        if len(self._names) >= _MOST_VOCABULARIES:
            self._names.clear()
        get_text = _Texts(kept.tokens).get_text
        words = TokenWords(make_text_names(get_text), get_text)
        self._names[tokenizer_digest] = kept, words
        await _make_names(words.names, len(kept.tokens))
        return words


async def _make_names(names: TokenNames, num_tokens: int) -> None:
    """Let the names be made before steps need them: each takes ten times as long as to look it up.

    The event loop runs its other tasks after each slice.
    """
    num_names = min(num_tokens, MAX_CACHED_NAMES)
    for begin in range(0, num_names, _NAMES_AT_ONCE):
        for token_id in range(begin, min(begin + _NAMES_AT_ONCE, num_names)):
            names(token_id)
        await asyncio.sleep(0)


class _Texts:
    """Texts of a vocabulary's tokens."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self._tokens = tokens

    def get_text(self, token_id: int) -> str:
        return decode_token(self._tokens[token_id]) if token_id < len(self._tokens) else ""
