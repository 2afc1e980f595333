"""Tokenizers of recorded models, which recorders send once."""

import asyncio
import hashlib
import json
from collections import OrderedDict
from typing import Any

from tokenizers import Tokenizer

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.model import TextFiles
from whence_server.domain.recorded import RecordedModel
from whence_server.text.tokenizer import TextTokenizer

_MAX_KEPT = 8
PADDING_ROWS = 8_192
"""Rows that a model's output head may have beyond the tokens of its tokenizer."""


class Tokenizers:
    """The tokenizers that were used last, by the digest of their serialised form."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, bool], TextTokenizer] = OrderedDict()

    def find(self, model: RecordedModel) -> TextTokenizer | None:
        """Return the tokenizer of a model; None if a recorder has to send it."""
        key = _make_key(model)
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    async def load(self, model: RecordedModel, content: bytes) -> TextTokenizer:
        """Make a model's tokenizer of its serialised form.

        Raises:
            InvalidRequestError: the bytes have another digest, or are no tokenizer.
        """
        if hashlib.sha256(content).hexdigest() != model.tokenizer_sha256:
            raise _make_error("has another SHA-256 than the model's tokenizer_sha256")
        try:
            files = TextFiles(
                content.decode(), None, {}, cleans_up_spaces=model.info.text.cleans_up_spaces
            )
            loaded = await asyncio.to_thread(_load, files, model.info.vocabulary_size)
        except InvalidRequestError:
            raise
        except Exception as error:
            # `tokenizers` raises a bare Exception.
            raise _make_error(f"is no tokenizer.json that can be read: {error}") from error
        self._kept[_make_key(model)] = loaded
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return loaded


def _load(files: TextFiles, vocabulary_size: int) -> TextTokenizer:
    # Tokens are decoded in the event loop, and a regular expression can take minutes for one.
    if _has_regex(json.loads(files.tokenizer_json).get("decoder")):
        raise _make_error(
            "has a decoder with a regular expression, which the server does not run for a "
            "recorder: write the pattern as a String"
        )
    num_tokens = Tokenizer.from_str(files.tokenizer_json).get_vocab_size()
    if vocabulary_size > num_tokens + PADDING_ROWS:
        raise InvalidRequestError(
            FieldViolation(
                "model.vocabulary_size",
                f"is {vocabulary_size}; for a tokenizer of {num_tokens} tokens it may be at most "
                f"{num_tokens + PADDING_ROWS}",
            )
        )
    return TextTokenizer(files, vocabulary_size)


def _has_regex(part: Any) -> bool:
    """Return whether a part of a tokenizer.json has a pattern that is a regular expression."""
    if isinstance(part, dict):
        return "Regex" in part or any(map(_has_regex, part.values()))
    return isinstance(part, list) and any(map(_has_regex, part))


def _make_key(model: RecordedModel) -> tuple[str, int, bool]:
    return (model.tokenizer_sha256, model.info.vocabulary_size, model.info.text.cleans_up_spaces)


def _make_error(description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("tokenizer.content", description))


class TokenizerParts:
    """Parts of a tokenizer's serialised form, as they arrive.

    Args:
        model: the model whose tokenizer was asked for.
    """

    def __init__(self, model: RecordedModel) -> None:
        self.model = model
        self._content = bytearray()

    def add(self, content: bytes) -> None:
        """Add the next part.

        Raises:
            InvalidRequestError: there are more bytes than announced.
        """
        self._content += content
        if len(self._content) > self.model.tokenizer_bytes:
            raise _make_error(f"has more than the {self.model.tokenizer_bytes} bytes announced")

    @property
    def num_bytes(self) -> int:
        """Number of bytes announced."""
        return self.model.tokenizer_bytes

    @property
    def content(self) -> bytes | None:
        """The whole, once it is complete; None before."""
        complete = len(self._content) == self.model.tokenizer_bytes
        return bytes(self._content) if complete else None
