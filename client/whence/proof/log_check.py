"""The part of a bundle about the transparency log: its format, and its check.

{"index": 6, "size": 9, "path": ["BASE64", ...], "checkpoint": "the signed note's text",
 "consistency": {"size": 4, "path": ["BASE64", ...]}}    only if an earlier size was asked for
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from whence.proof.checkpoints import Checkpoint, VerifiedCheckpoint, verify_checkpoint
from whence.proof.faults import ProofError
from whence.proof.log_growth import (
    check_growth,
    encode_note,
    read_consistency,
    read_path,
    spell_consistency,
)
from whence.proof.merkle import verify_inclusion
from whence.proof.merkle_tree import hash_leaf
from whence.proof.notes import VerifierKey
from whence.proof.strict_json import Fields


class LogTrust(NamedTuple):
    """Keys that a log's checkpoint must be signed with.

    Attributes:
        log: public key of the log, learnt from a trusted place.
        witnesses: keys of the witnesses that may have cosigned.
        quorum: number of them that must have; None for all of them.
    """

    log: VerifierKey
    witnesses: Sequence[VerifierKey] = ()
    quorum: int | None = None

    @classmethod
    def parse(
        cls, log: str, witnesses: Sequence[str] = (), quorum: int | None = None
    ) -> "LogTrust":
        """Read the keys from their texts.

        Raises:
            ProofError: a text is no key, or there are fewer witnesses than have to cosign.
        """
        keys = [VerifierKey.parse(text) for text in witnesses]
        num_named = len({key.public for key in keys})
        if quorum is not None and quorum > num_named:
            raise ProofError(
                f"{quorum} witnesses must have cosigned, and only {num_named} are named: give "
                "--witness for each of them, or a smaller --witness-quorum"
            )
        return cls(VerifierKey.parse(log), keys, quorum)

    def verify(self, note: bytes) -> VerifiedCheckpoint:
        """Verify a checkpoint.

        Raises:
            NoteError: it is malformed, or is not signed as it must be.
        """
        num_named = len({key.public for key in self.witnesses})
        quorum = num_named if self.quorum is None else self.quorum
        return verify_checkpoint(note, self.log, self.witnesses, quorum)


def spell_log(
    index: int,
    size: int,
    path: Sequence[bytes],
    checkpoint: bytes,
    earlier: tuple[int, Sequence[bytes]] | None = None,
) -> str:
    """Return the JSON of a proof that a statement is in the log.

    Args:
        index: index of the entry.
        size: number of entries of the log in the checkpoint.
        path: hashes of the siblings from the leaf up to the root.
        checkpoint: the signed note.
        earlier: number of entries of an earlier log, and the proof that this one continues it.
    """
    spelled = [base64.b64encode(node).decode() for node in path]
    found: dict[str, Any] = {
        "index": index,
        "size": size,
        "path": spelled,
        "checkpoint": checkpoint.decode(),
    }
    if earlier is not None:
        found["consistency"] = spell_consistency(*earlier)
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def check_log(
    log: dict[str, Any], envelope: bytes, trust: LogTrust, known: Checkpoint | None = None
) -> str:
    """Check that a statement is in a transparency log.

    Args:
        log: the bundle's object "log", parsed.
        envelope: the statement's envelope.
        trust: keys that must have signed the log's checkpoint.
        known: earlier checkpoint that the log must continue; None for none.

    Returns:
        What was found, in words.

    Raises:
        ProofError: the object is malformed, the checkpoint is not signed as it must be, the
            statement is not in the log, or the log does not continue the known one.
    """
    fields = Fields(log, "log")
    index, size = fields.take("index", int), fields.take("size", int)
    path = read_path(fields.take("path", list), "log.path")
    note = encode_note(fields.take("checkpoint", str), "log.checkpoint")
    earlier = fields.take_or("consistency", dict, {})
    fields.end()
    verified = trust.verify(note)
    checkpoint, name = verified.checkpoint, trust.log.name
    if checkpoint.size != size:
        raise ProofError(
            f"log.size is {size}, and the checkpoint is of a log with {checkpoint.size}"
        )
    found = check_inclusion(envelope, index, path, verified, name)
    if known is not None:
        nodes = _find_path(earlier, known, checkpoint)
        found += f"; {check_growth(known, checkpoint, nodes)}"
    elif earlier:
        read_consistency(earlier, "log.consistency")
    return found


def check_inclusion(
    envelope: bytes, index: int, path: Sequence[bytes], verified: VerifiedCheckpoint, name: str
) -> str:
    """Check that a statement is the entry of a log; return what was found, in words.

    Raises:
        ProofError: it is not.
    """
    checkpoint = verified.checkpoint
    leaf = hash_leaf(hashlib.sha256(envelope).digest())
    if not verify_inclusion(leaf, index, checkpoint.size, path, checkpoint.root):
        raise ProofError(f"the statement is not entry {index} of the log {name}")
    cosigned = ", ".join(sorted(verified.witnesses)) or "nobody"
    return f"entry {index} of {checkpoint.size} in the log {name}, cosigned by {cosigned}"


def _find_path(earlier: dict[str, Any], known: Checkpoint, newer: Checkpoint) -> list[bytes]:
    """Return the nodes of the proof that a log continues the known one."""
    size, nodes = read_consistency(earlier, "log.consistency") if earlier else (None, [])
    if known.size == 0 or known.size >= newer.size:
        return []  # No proof exists: the roots are compared, or the log is refused.
    if size is None:
        raise ProofError(
            f"the bundle has no proof that the log continues the {known.size} entries that you "
            "know: export it with --known FILE, the checkpoint"
        )
    if size != known.size:
        raise ProofError(
            f"the bundle proves that the log continues one of {size} entries, and you know one of "
            f"{known.size}: export it with --known FILE, the checkpoint"
        )
    return nodes
