"""Derivation of the columns beside the entries from the entries' bytes."""

import hashlib
import struct
from collections.abc import Iterable
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.v1 import deletion_pb2, generation_pb2
from whence_server.domain.decoding import FinishReason
from whence_server.domain.retention import DeletionRequest
from whence_server.journal.rows import PREVIEW_CHARACTERS, FinishIndex, GenerationIndex
from whence_server.journal.sealing.stored_form import (
    index_sealed_finish,
    index_sealed_start,
    is_sealed,
    peek_key_id,
)

PEEK_BYTES = 160
"""Number of first bytes of a STARTED entry that hold its generation's id and its key's."""
_ID_TAG = 0x0A
_LONGEST_SHORT_ID = 0x7F
_PLACE = struct.Struct(">qqB")


class EntryDigest(NamedTuple):
    """The part of an entry that a deletion keeps: its place, kind and digest."""

    position: int
    offset: int
    kind: int
    inner_digest: bytes


def peek_generation_id(first_bytes: bytes | None) -> str | None:
    """Return the id at the beginning of a STARTED entry; None if it cannot be read there.

    The id is the first field of GenerationStarted, and protobuf writes fields in their order:
    reading it takes the same time for every length of the prompt.
    """
    if not first_bytes or len(first_bytes) < 2 or first_bytes[0] != _ID_TAG:
        return None
    length = first_bytes[1]
    raw = first_bytes[2 : 2 + length]
    if not length or length > _LONGEST_SHORT_ID or len(raw) < length:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def derive_started_index(payload: bytes) -> GenerationIndex:
    """Return the columns of a generation that follow from its STARTED entry, as it is stored.

    Raises:
        ValueError: the bytes are neither a GenerationStarted nor a SealedStart.
    """
    if peek_key_id(payload):
        return index_sealed_start(payload)
    try:
        started = generation_pb2.GenerationStarted.FromString(payload)
    except DecodeError as error:
        raise ValueError("the STARTED entry's payload is not a GenerationStarted") from error
    return GenerationIndex(
        generation_id=started.generation_id,
        trace_id=started.trace_id,
        model=started.model,
        start_time_ns=started.start_time.ToNanoseconds(),
        request_digest=started.request_digest,
        labels=dict(started.labels),
        prompt_preview=started.prompt[:PREVIEW_CHARACTERS],
        num_prompt_tokens=started.num_prompt_tokens or len(started.prompt_token_ids),
        owner=started.owner,
        parent=started.fork.parent_generation_id,
    )


def derive_finished_index(payload: bytes) -> FinishIndex:
    """Return the columns of a generation that follow from its FINISHED entry, as it is stored.

    Raises:
        ValueError: the bytes are neither a GenerationFinished nor a SealedFinish.
    """
    if is_sealed(payload):
        return index_sealed_finish(payload)
    try:
        finished = generation_pb2.GenerationFinished.FromString(payload)
    except DecodeError as error:
        raise ValueError("the FINISHED entry's payload is not a GenerationFinished") from error
    text = finished.sequences[0].text if finished.sequences else ""
    return FinishIndex(
        FinishReason(finished.finish_reason),
        finished.num_generated_tokens,
        text[:PREVIEW_CHARACTERS],
    )


def encode_deletion(
    generation_id: str,
    started_position: int,
    time_ns: int,
    entries: "EntriesDigest",
    request: DeletionRequest,
    *,
    destroyed_key_id: bytes = b"",
) -> bytes:
    """Return a serialised whence.v1.Deletion over a generation's entries, by position."""
    deletion = deletion_pb2.Deletion(
        generation_id=generation_id,
        started_position=started_position,
        num_entries=entries.number,
        entries_digest=entries.compute(),
        caller_id=request.caller_id,
        cause=deletion_pb2.DeletionCause.ValueType(request.cause),
        rule=request.rule,
        destroyed_key_id=destroyed_key_id,
    )
    deletion.time.FromNanoseconds(time_ns)
    return deletion.SerializeToString()


def encode_removal(time_ns: int, removed_position: int, removed_hash: bytes) -> bytes:
    """Return a serialised whence.v1.Deletion about the removal of the oldest entries."""
    deletion = deletion_pb2.Deletion(
        cause=deletion_pb2.DELETION_CAUSE_REMOVAL,
        removed_position=removed_position,
        removed_hash=removed_hash,
    )
    deletion.time.FromNanoseconds(time_ns)
    return deletion.SerializeToString()


class EntriesDigest:
    """`Deletion.entries_digest`, taken over entries in order of position.

    Attributes:
        number: number of entries so far.
    """

    def __init__(self, entries: Iterable[EntryDigest] = ()) -> None:
        self.number = 0
        self._whole = hashlib.sha256()
        self.add(entries)

    def add(self, entries: Iterable[EntryDigest]) -> None:
        """Take the next entries."""
        for entry in entries:
            self._whole.update(
                _PLACE.pack(entry.position, entry.offset, entry.kind & 0xFF) + entry.inner_digest
            )
            self.number += 1

    def compute(self) -> bytes:
        """Return the digest over the entries so far."""
        return self._whole.digest()


def compute_cursor_seal(name: str, position: int, entry_hash: bytes) -> bytes:
    """Return the seal that binds a cursor to its name and to the entry at its position.

    SHA-256 over "whence cursor", the name, NUL, the position (8 bytes, big-endian) and the
    entry's hash; the chain's first hash for position 0.
    """
    head = b"whence cursor" + name.encode(errors="replace") + b"\0"
    return hashlib.sha256(head + position.to_bytes(8, "big", signed=True) + entry_hash).digest()
