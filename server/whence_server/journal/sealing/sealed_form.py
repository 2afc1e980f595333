"""Sealed form of one generation's entries."""

import os
from collections.abc import Callable, Mapping

from whence.v1 import sealing_pb2
from whence_server.domain.entries import EntryKind
from whence_server.journal.rows import FinishIndex, GenerationIndex
from whence_server.journal.sealing.data_key import INDEX, PREVIEW, DataKey, place_entry
from whence_server.journal.sealing.stored_form import (
    ENTRY_MARK,
    FINISH_MARK,
    index_sealed_finish,
    index_sealed_start,
)

_PREFIX_BYTES, _COUNT_BYTES = 8, 4


class SealedForm:
    """Form that encrypts a generation's entries, in the order of appending.

    A nonce is 8 bytes, drawn when a process begins to write the generation, and a count. So it
    does not repeat if a crash loses the newest entries, and others take their positions.
    """

    __slots__ = ("_count", "_digest_labels", "_key", "_prefix")

    def __init__(
        self, key: DataKey, digest_labels: Callable[[Mapping[str, str]], dict[str, str]]
    ) -> None:
        self._key = key
        self._digest_labels = digest_labels
        self._prefix = os.urandom(_PREFIX_BYTES)
        self._count = 0

    def store_start(
        self, position: int, payload: bytes, index: GenerationIndex
    ) -> tuple[bytes, GenerationIndex]:
        """Return the sealed STARTED, and the columns that follow from it."""
        columns = sealing_pb2.SealedIndex(
            request_digest=index.request_digest,
            labels={_to_text(name): _to_text(value) for name, value in index.labels.items()},
            prompt_preview=_to_text(index.prompt_preview),
        )
        stored = sealing_pb2.SealedStart(
            generation_id=index.generation_id,
            key_id=self._key.key_id,
            message=self._seal(payload, place_entry(position, 1, EntryKind.STARTED)),
            index=self._seal(columns.SerializeToString(), INDEX),
            label_digests=self._digest_labels(index.labels),
            trace_id=index.trace_id,
            model=index.model,
            start_time_ns=index.start_time_ns,
            num_prompt_tokens=index.num_prompt_tokens,
            owner=_to_text(index.owner),
            parent_generation_id=index.parent,
        ).SerializeToString()
        return stored, index_sealed_start(stored)

    def store(self, position: int, offset: int, kind: EntryKind, payload: bytes) -> bytes:
        """Return a sealed entry."""
        count = self._count
        self._count = count + 1
        nonce = self._prefix + count.to_bytes(_COUNT_BYTES, "big")
        return ENTRY_MARK + self._key.encrypt(nonce, payload, place_entry(position, offset, kind))

    def store_finish(
        self, position: int, offset: int, payload: bytes, index: FinishIndex
    ) -> tuple[bytes, FinishIndex]:
        """Return the sealed FINISHED, and the columns that follow from it."""
        preview = _to_text(index.text_preview).encode()
        place = place_entry(position, offset, EntryKind.FINISHED)
        finish = sealing_pb2.SealedFinish(
            message=self._seal(payload, place),
            preview=self._seal(preview, PREVIEW),
            finish_reason=index.finish_reason.value,
            num_generated_tokens=index.num_generated_tokens,
        )
        stored = FINISH_MARK + finish.SerializeToString()
        return stored, index_sealed_finish(stored)

    def _seal(self, content: bytes, place: bytes) -> bytes:
        nonce = self._prefix + self._count.to_bytes(_COUNT_BYTES, "big")
        self._count += 1
        return self._key.encrypt(nonce, content, place)


def _to_text(given: str) -> str:
    # A lone surrogate has no UTF-8: one preview or label must not cost a generation.
    return given.encode(errors="replace").decode()
