"""The part of a bundle about the transparency log: its format, and its check.

{"index": 6, "size": 9, "path": ["BASE64", ...], "checkpoint": "the signed note's text"}
"""

import base64
import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Any

from whence.proof.checkpoints import verify_checkpoint
from whence.proof.faults import FormatError, ProofError
from whence.proof.merkle import MAX_TREE_SIZE, verify_inclusion
from whence.proof.merkle_tree import HASH_BYTES, hash_leaf
from whence.proof.notes import VerifierKey
from whence.proof.strict_json import Fields, decode_base64


def spell_log(index: int, size: int, path: Sequence[bytes], checkpoint: bytes) -> str:
    """Return the JSON of a proof that a statement is in the log.

    Args:
        index: index of the entry.
        size: number of entries of the log in the checkpoint.
        path: hashes of the siblings from the leaf up to the root.
        checkpoint: the signed note.
    """
    spelled = [base64.b64encode(node).decode() for node in path]
    found = {"index": index, "size": size, "path": spelled, "checkpoint": checkpoint.decode()}
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def check_log(
    log: dict[str, Any],
    envelope: bytes,
    log_key: VerifierKey,
    witnesses: Collection[VerifierKey] = (),
) -> str:
    """Check that a statement is in a transparency log.

    Args:
        log: the bundle's object "log", parsed.
        envelope: the statement's envelope.
        log_key: public key of the log, learnt from a trusted place.
        witnesses: keys of the witnesses that must have cosigned, all of them.

    Returns:
        What was found, in words.

    Raises:
        ProofError: the object is malformed, the checkpoint is not signed as it must be, or the
            statement is not in the log.
    """
    fields = Fields(log, "log")
    index, size = fields.take("index", int), fields.take("size", int)
    given = fields.take("path", list)
    checkpoint = fields.take("checkpoint", str)
    fields.end()
    if len(given) > MAX_TREE_SIZE.bit_length():
        raise FormatError(f"log.path has {len(given)} hashes; no tree is as high")
    path = [_read_hash(text, place) for place, text in enumerate(given)]
    verified = verify_checkpoint(_encode(checkpoint), log_key, witnesses, len(witnesses))
    if verified.checkpoint.size != size:
        raise ProofError(
            f"log.size is {size}, and the checkpoint is of a log with {verified.checkpoint.size}"
        )
    leaf = hash_leaf(hashlib.sha256(envelope).digest())
    if not verify_inclusion(leaf, index, size, path, verified.checkpoint.root):
        raise ProofError(f"the statement is not entry {index} of the log {log_key.name}")
    cosigned = ", ".join(sorted(verified.witnesses)) or "nobody"
    return f"entry {index} of {size} in the log {log_key.name}, cosigned by {cosigned}"


def _encode(checkpoint: str) -> bytes:
    try:
        return checkpoint.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair.
        raise FormatError("log.checkpoint is no Unicode text") from None


def _read_hash(text: Any, place: int) -> bytes:
    where = f"log.path[{place}]"
    node = decode_base64(text, where) if isinstance(text, str) else b""
    if len(node) != HASH_BYTES:
        raise FormatError(f"{where} is not the base64 of {HASH_BYTES} bytes")
    return node
