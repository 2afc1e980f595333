"""Removal of spaces before punctuation, as transformers' `clean_up_tokenization`, in pieces."""

from whence_server.text.detokenizer import Detokenizer

REPLACEMENTS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""Replacements in transformers' order: each is applied to the result of the previous one."""


def clean_up(text: str) -> str:
    """Return a whole text without a tokenizer's spaces before punctuation."""
    for old, new in REPLACEMENTS:
        text = text.replace(old, new)
    return text


class CleaningDetokenizer:
    """Detokenizer that cleans up another one's text; the pieces join to `clean_up` of all.

    A space at the end is held back until the next character decides if it stays.
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self._stages = [_Replacer(old, new) for old, new in REPLACEMENTS]

    @property
    def num_held_bytes(self) -> int:
        """Bytes of an incomplete character and of text that punctuation may change."""
        held = sum(len(stage.held.encode()) for stage in self._stages)
        return self._detokenizer.num_held_bytes + held

    @property
    def held_text(self) -> str:
        """Text that `flush` would return."""
        text = self._detokenizer.held_text
        for stage in self._stages:
            text = (stage.held + text).replace(stage.old, stage.new)
        return text

    def push(self, token_id: int) -> str:
        """Take the next token."""
        text = self._detokenizer.push(token_id)
        for stage in self._stages:
            text = stage.feed(text)
        return text

    def flush(self) -> str:
        """Return what was held back."""
        text = self._detokenizer.flush()
        for stage in self._stages:
            text = stage.feed(text) + stage.flush()
        return text


class _Replacer:
    """`str.replace` over a text that arrives in pieces.

    Attributes:
        old: text to replace.
        new: replacement.
        held: end of the text so far that may be the beginning of `old`.
    """

    __slots__ = ("held", "new", "old")

    def __init__(self, old: str, new: str) -> None:
        self.old = old
        self.new = new
        self.held = ""

    def feed(self, text: str) -> str:
        if not text:
            return ""
        *before, tail = (self.held + text).split(self.old)
        lengths = range(len(self.old) - 1, 0, -1)
        num_held = next((n for n in lengths if tail.endswith(self.old[:n])), 0)
        self.held = tail[len(tail) - num_held :]
        return self.new.join([*before, tail[: len(tail) - num_held]])

    def flush(self) -> str:
        held, self.held = self.held, ""
        return held
