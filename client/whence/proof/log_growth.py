"""Checks that a transparency log continues an earlier one: nothing was changed or cut off."""

import base64
from collections.abc import Sequence
from typing import Any

from whence.proof.bundle import is_bundle, read_bundle
from whence.proof.checkpoints import Checkpoint, verify_checkpoint
from whence.proof.faults import FormatError, ProofError
from whence.proof.merkle import MAX_TREE_SIZE, verify_consistency
from whence.proof.merkle_tree import HASH_BYTES
from whence.proof.notes import NoteError, VerifierKey
from whence.proof.strict_json import Fields, decode_base64


def find_note(data: bytes) -> bytes:
    """Return the signed checkpoint in a saved file: the file itself, or that of a bundle.

    Raises:
        FormatError: it is a bundle that is malformed or has no checkpoint.
    """
    if not is_bundle(data):
        return data
    note = (read_bundle(data).log or {}).get("checkpoint")
    if not isinstance(note, str):
        raise FormatError("the bundle has no checkpoint of a log")
    return encode_note(note, "the bundle's checkpoint")


def encode_note(text: str, where: str) -> bytes:
    """Return the bytes of a note in JSON.

    Raises:
        FormatError: it is no Unicode text; JSON can spell half of a surrogate pair.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise FormatError(f"{where} is no Unicode text") from None


def read_known(data: bytes, log_key: VerifierKey) -> Checkpoint:
    """Return the checkpoint in a file that somebody has kept.

    Args:
        data: content of the file: a checkpoint, or a bundle that has one.
        log_key: public key of the log.

    Raises:
        ProofError: it is malformed, or the log has not signed it.
    """
    try:
        return verify_checkpoint(find_note(data), log_key).checkpoint
    except NoteError as error:
        raise ProofError(f"the checkpoint that you kept: {error}") from None


def check_growth(known: Checkpoint, newer: Checkpoint, path: Sequence[bytes]) -> str:
    """Check that a log continues the one that is known.

    Args:
        known: the checkpoint that was kept.
        newer: the verified checkpoint of the log.
        path: nodes of the proof of consistency.

    Returns:
        What was found, in words.

    Raises:
        ProofError: it does not, or the proof is not one of these two checkpoints.
    """
    if known.size > newer.size:
        raise ProofError(
            f"the log has {newer.size} entries, and you know a checkpoint with {known.size}: "
            "entries were cut off, or this checkpoint is the older one"
        )
    if not verify_consistency(known.size, known.root, newer.size, newer.root, path):
        raise ProofError(
            f"the log with {newer.size} entries does not continue the one with {known.size} that "
            "you know: entries were changed, or the proof is of other checkpoints"
        )
    return f"it continues the log of {known.size} entries that you know"


def spell_consistency(size: int, path: Sequence[bytes]) -> dict[str, Any]:
    """Return the JSON object of a proof of consistency; `read_path` reads its path."""
    return {"size": size, "path": [base64.b64encode(node).decode() for node in path]}


def read_consistency(found: dict[str, Any], where: str) -> tuple[int, list[bytes]]:
    """Return the size of the earlier log and the nodes of a proof of consistency.

    Raises:
        FormatError: it is malformed.
    """
    fields = Fields(found, where)
    size, path = fields.take("size", int), fields.take("path", list)
    fields.end()
    return size, read_path(path, f"{where}.path")


def read_path(given: Sequence[Any], where: str) -> list[bytes]:
    """Return the hashes of a proof.

    Raises:
        FormatError: there are more than any tree is high, or one is no hash.
    """
    if len(given) > MAX_TREE_SIZE.bit_length():
        raise FormatError(f"{where} has {len(given)} hashes; no tree is as high")
    return [_read_hash(text, f"{where}[{place}]") for place, text in enumerate(given)]


def _read_hash(text: Any, where: str) -> bytes:
    node = decode_base64(text, where) if isinstance(text, str) else b""
    if len(node) != HASH_BYTES:
        raise FormatError(f"{where} is not the base64 of {HASH_BYTES} bytes")
    return node
