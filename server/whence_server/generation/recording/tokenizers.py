"""Tokenizers of recorded models, which recorders send once."""

import asyncio
import hashlib
from collections import OrderedDict

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.model import TextFiles
from whence_server.domain.recorded import RecordedModel
from whence_server.generation.recording.trial import FIELD, load_tokenizer, try_tokenizer
from whence_server.text.tokenizer import TextTokenizer

_MAX_KEPT = 8
_MAX_TRIALS = 2
"""Maximum number of tokenizers that are tried at the same time."""


class Tokenizers:
    """The tokenizers that were used last, by the digest of their serialised form."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, bool], TextTokenizer] = OrderedDict()
        self._trials = asyncio.Semaphore(_MAX_TRIALS)

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
        size = model.info.vocabulary_size
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise _make_error(f"is no tokenizer.json that can be read: {error}") from None
        files = TextFiles(text, None, {}, cleans_up_spaces=model.info.text.cleans_up_spaces)
        async with self._trials:
            fault = await try_tokenizer(files, size)
        if fault is not None:
            raise InvalidRequestError(FieldViolation(*fault))
        loaded = await asyncio.to_thread(load_tokenizer, files, size)
        self._kept[_make_key(model)] = loaded
        if len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        return loaded


def _make_key(model: RecordedModel) -> tuple[str, int, bool]:
    return (model.tokenizer_sha256, model.info.vocabulary_size, model.info.text.cleans_up_spaces)


def _make_error(description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(FIELD, description))


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
