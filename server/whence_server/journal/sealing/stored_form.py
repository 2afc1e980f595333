"""Stored form of the entries of encrypted generations: messages and marks (sealing.proto)."""

import base64

from google.protobuf.message import DecodeError

from whence.v1 import sealing_pb2
from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.journal.rows import FinishIndex, GenerationIndex

KEY_ID_BYTES = 16
ENTRY_MARK, FINISH_MARK = b"\0\1", b"\0\2"
"""First bytes of sealed entries besides STARTED: no message begins with field number 0."""
_ID_TAG = 0x0A
_KEY_ID_HEAD = b"\xba\x02\x10"
"""Tag of SealedStart.key_id, and its length."""


def peek_key_id(first_bytes: bytes | None) -> bytes:
    """Return the key's id at the beginning of a sealed STARTED entry; b"" for one in clear."""
    if not first_bytes or len(first_bytes) < 2 or first_bytes[0] != _ID_TAG:
        return b""
    begin = 2 + first_bytes[1]
    end = begin + len(_KEY_ID_HEAD)
    key_id = first_bytes[end : end + KEY_ID_BYTES]
    is_key = first_bytes[begin:end] == _KEY_ID_HEAD and len(key_id) == KEY_ID_BYTES
    return key_id if is_key else b""


def is_sealed(payload: bytes) -> bool:
    """Return whether an entry besides STARTED is sealed."""
    return payload[:1] == b"\0"


def is_sealed_entry(kind: EntryKind, payload: bytes) -> bool:
    """Return whether an entry of any kind is sealed."""
    return bool(peek_key_id(payload)) if kind is EntryKind.STARTED else is_sealed(payload)


def parse_sealed_start(payload: bytes) -> sealing_pb2.SealedStart:
    """Parse a sealed STARTED entry.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return sealing_pb2.SealedStart.FromString(payload)
    except DecodeError as error:
        raise ValueError("the STARTED entry's payload is not a SealedStart") from error


def parse_sealed_finish(payload: bytes) -> sealing_pb2.SealedFinish:
    """Parse a sealed FINISHED entry.

    Raises:
        ValueError: it is damaged.
    """
    if not payload.startswith(FINISH_MARK):
        raise ValueError("the FINISHED entry's payload is not a SealedFinish")
    try:
        return sealing_pb2.SealedFinish.FromString(payload[len(FINISH_MARK) :])
    except DecodeError as error:
        raise ValueError("the FINISHED entry's payload is not a SealedFinish") from error


def index_sealed_start(payload: bytes) -> GenerationIndex:
    """Return the columns that a sealed STARTED entry implies.

    The column of the prompt's preview holds the sealed content of all columns.

    Raises:
        ValueError: it is damaged.
    """
    sealed = parse_sealed_start(payload)
    return GenerationIndex(
        generation_id=sealed.generation_id,
        trace_id=sealed.trace_id,
        model=sealed.model,
        start_time_ns=sealed.start_time_ns,
        request_digest="",
        labels=dict(sealed.label_digests),
        prompt_preview=encode_column(sealed.index),
        num_prompt_tokens=sealed.num_prompt_tokens,
        owner=sealed.owner,
        parent=sealed.parent_generation_id,
    )


def index_sealed_finish(payload: bytes) -> FinishIndex:
    """Return the columns that a sealed FINISHED entry implies.

    Raises:
        ValueError: it is damaged.
    """
    sealed = parse_sealed_finish(payload)
    return FinishIndex(
        FinishReason(sealed.finish_reason),
        sealed.num_generated_tokens,
        encode_column(sealed.preview),
    )


def encode_column(sealed: bytes) -> str:
    """Return sealed bytes as text, for a column of texts."""
    return base64.b64encode(sealed).decode()


def decode_column(text: str) -> bytes:
    """Return the sealed bytes of a column.

    Raises:
        ValueError: they are not base64.
    """
    return base64.b64decode(text, validate=True)
