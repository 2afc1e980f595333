"""Names of tokens in summaries: their text in quotes, or their id."""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from whence.summary.quoting import quote_briefly
from whence.v1.step_pb2 import Step

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


def name_told_tokens(
    step: Step, names: TokenNames
) -> tuple[TokenNames, int | None, Sequence[int], Sequence[float]]:
    """Name the tokens of an upstream's step by the texts that it told.

    Candidates without ids get negative numbers in place of them, and so does the token.

    Returns:
        The names, the token's id, the candidates' ids and their logprobs.
    """
    table = step.candidates
    ids: Sequence[int] = table.token_ids
    logprobs: Sequence[float] = table.logprobs
    if not ids:
        ids, logprobs = range(-1, -1 - len(table.texts), -1), table.text_logprobs
    texts = dict(zip(ids, table.texts))  # noqa: B905 - the texts of some may be missing
    token_id = step.token_id if step.HasField("token_id") else None
    if token_id is None and step.token_text:
        same = (one for one, text in texts.items() if text == step.token_text)
        token_id = next(same, -1 - len(texts))
    if token_id is not None and step.token_text:
        texts[token_id] = step.token_text

    def name(wanted: int) -> str:
        text = texts.get(wanted)
        return quote_briefly(text, MAX_NAME_CHARACTERS) if text else names(wanted)

    return name, token_id, ids, logprobs


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
