"""The data key of one generation: it encrypts and decrypts what the journal stores of it."""

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from whence.v1 import sealing_pb2
from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal.rows import FinishIndex, GenerationIndex
from whence_server.journal.sealing.master_keys import NONCE_BYTES
from whence_server.journal.sealing.stored_form import (
    ENTRY_MARK,
    decode_column,
    parse_sealed_finish,
    parse_sealed_start,
)

_PLACE = struct.Struct(">16sBQQB")
_HEAD = b"whence sealed 1\0"
_ENTRY, _INDEX, _PREVIEW = 1, 2, 3
"""Parts of a generation's record."""
_BEGIN, _END = len(ENTRY_MARK), len(ENTRY_MARK) + NONCE_BYTES
"""Place of the nonce in an entry."""
_CHANGED = "the content was changed, or encrypted for another place"


def place_entry(position: int, offset: int, kind: int) -> bytes:
    """Return the place of an entry's message, to which its ciphertext is bound."""
    return _PLACE.pack(_HEAD, _ENTRY, position, offset, kind)


INDEX = _PLACE.pack(_HEAD, _INDEX, 0, 0, 0)
PREVIEW = _PLACE.pack(_HEAD, _PREVIEW, 0, 0, 0)
"""Places of a generation's columns, and of those of its end."""


class DataKey:
    """AES-256-GCM under the key of one generation.

    Attributes:
        generation_id: id of the generation.
        key_id: 16 random bytes by which the record names the key.
        secret: the key.
    """

    __slots__ = ("_decrypt", "_encrypt", "_id", "generation_id", "key_id", "secret")

    def __init__(self, generation_id: str, key_id: bytes, secret: bytes) -> None:
        self.generation_id = generation_id
        self.key_id = key_id
        self.secret = secret
        self._id = generation_id.encode()
        cipher = AESGCM(secret)
        self._encrypt, self._decrypt = cipher.encrypt, cipher.decrypt

    def encrypt(self, nonce: bytes, content: bytes, place: bytes) -> bytes:
        """Return nonce, ciphertext and tag; a nonce must not be used twice."""
        return nonce + self._encrypt(nonce, content, place + self._id)

    def open_step(self, position: int, offset: int, kind: int, sealed: bytes) -> bytes:
        """Return the message of a sealed entry besides STARTED and FINISHED.

        It is optimised, because every step is read from disk at least once.

        Raises:
            ValueError: it is damaged, or belongs to another place.
        """
        try:
            return self._decrypt(
                sealed[_BEGIN:_END],
                sealed[_END:],
                _PLACE.pack(_HEAD, _ENTRY, position, offset, kind) + self._id,
            )
        except InvalidTag:
            raise ValueError(_CHANGED) from None

    def open_entry(self, entry: Entry) -> bytes:
        """Return the message of a sealed entry; raise as `open_step` does."""
        position, _, offset, kind, sealed = entry
        if kind is EntryKind.STARTED:
            message = parse_sealed_start(sealed).message
        elif kind is EntryKind.FINISHED:
            message = parse_sealed_finish(sealed).message
        else:
            return self.open_step(position, offset, kind, sealed)
        return self._open(message, place_entry(position, offset, kind))

    def open_index(self, stored: GenerationIndex) -> GenerationIndex:
        """Return a generation's columns from their stored form.

        Raises:
            ValueError: they are damaged, or belong to another generation.
        """
        content = self._open(decode_column(stored.prompt_preview), INDEX)
        index = sealing_pb2.SealedIndex.FromString(content)
        return GenerationIndex(
            stored.generation_id,
            stored.trace_id,
            stored.model,
            stored.start_time_ns,
            index.request_digest,
            dict(index.labels),
            index.prompt_preview,
            stored.num_prompt_tokens,
            stored.owner,
            stored.parent,
        )

    def open_finish(self, stored: FinishIndex) -> FinishIndex:
        """Return the columns of a generation's end from their stored form.

        Raises:
            ValueError: they are damaged, or belong to another generation.
        """
        preview = self._open(decode_column(stored.text_preview), PREVIEW).decode()
        return FinishIndex(stored.finish_reason, stored.num_generated_tokens, preview)

    def _open(self, sealed: bytes, place: bytes) -> bytes:
        nonce, content = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return self._decrypt(nonce, content, place + self._id)
        except InvalidTag:
            raise ValueError(_CHANGED) from None
