"""The digest of a generation's signed statement, from its FINISHED entry."""

import hashlib

from google.protobuf.message import DecodeError

from whence.v1.generation_pb2 import GenerationFinished
from whence_server.domain.entries import Entry


def find_digest(entry: Entry) -> bytes | None:
    """Return the SHA-256 of the statement's envelope in a FINISHED entry.

    None if the generation was not signed, or its content was deleted.
    """
    try:
        finished = GenerationFinished.FromString(entry.payload)
    except DecodeError:
        return None
    envelope: bytes = finished.statement.envelope
    return hashlib.sha256(envelope).digest() if envelope else None
