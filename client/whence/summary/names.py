"""Names of tokens in summaries: their text in quotes, or their id."""

from collections.abc import Callable
from typing import Final, TypeAlias

from whence.summary.quoting import quote_briefly

TokenNames: TypeAlias = Callable[[int], str]
"""Function that returns the name of a token id."""

MAX_NAME_CHARACTERS: Final = 32
"""Longest name of a token, quotes and escapes included."""

ID_PREFIX: Final = "#"

name_by_id: Final[TokenNames] = f"{ID_PREFIX}%d".__mod__
"""Names for where no text is allowed or known: "#967"."""

MAX_CACHED_NAMES: Final = 1 << 18
"""Most names that are kept; the cache is emptied when it is full."""


def make_text_names(text_of: Callable[[int], str]) -> TokenNames:
    """Return names that are texts in quotes, cached; an id without a text is named as the id.

    Args:
        text_of: returns the text of an id from the tokenizer's vocabulary; "" for an id without.
    """
    return _Names(text_of).__getitem__


class _Names(dict[int, str]):
    """Cache of names by id, filled as they are asked for."""

    def __init__(self, text_of: Callable[[int], str]) -> None:
        super().__init__()
        self._text_of = text_of

    def __missing__(self, token_id: int) -> str:
        if len(self) >= MAX_CACHED_NAMES:
            self.clear()
        text = self._text_of(token_id)
        made = quote_briefly(text, MAX_NAME_CHARACTERS) if text else name_by_id(token_id)
        self[token_id] = made
        return made
