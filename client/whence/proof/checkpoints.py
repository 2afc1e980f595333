"""Checkpoints of a transparency log (C2SP tlog-checkpoint): its size and root, signed."""

import base64
import binascii
from collections.abc import Collection
from typing import NamedTuple, Self

from whence.proof.merkle import MAX_TREE_SIZE
from whence.proof.merkle_tree import HASH_BYTES
from whence.proof.notes import COSIGNATURE, ED25519, NoteError, SignedNote, VerifierKey

_LINES = 3


class Checkpoint(NamedTuple):
    """State of a log.

    Attributes:
        origin: name of the log.
        size: number of its entries.
        root: root hash over them, 32 bytes.
        extensions: further lines, which other logs may have.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a checkpoint from a note's text.

        Raises:
            NoteError: it is malformed.
        """
        lines = text.split("\n")
        if len(lines) <= _LINES or lines[-1] or not all(lines[:-1]):
            raise NoteError("the checkpoint is malformed: expected lines of origin, size and root")
        origin, size, encoded = lines[:_LINES]
        try:
            root = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            root = b""
        if len(root) != HASH_BYTES or base64.b64encode(root).decode() != encoded:
            raise NoteError("the checkpoint's root is not the base64 of 32 bytes")
        return cls(origin, parse_size(size), root, tuple(lines[_LINES:-1]))

    def format(self) -> str:
        """Return the note's text."""
        root = base64.b64encode(self.root).decode()
        return "".join(f"{it}\n" for it in (self.origin, self.size, root, *self.extensions))


class VerifiedCheckpoint(NamedTuple):
    """A checkpoint whose signatures were verified.

    Attributes:
        checkpoint: the log's state.
        witnesses: names of the witnesses that cosigned it, each with the time in Unix seconds.
    """

    checkpoint: Checkpoint
    witnesses: dict[str, int]


def verify_checkpoint(
    raw: bytes, log_key: VerifierKey, witnesses: Collection[VerifierKey] = (), quorum: int = 0
) -> VerifiedCheckpoint:
    """Verify a signed checkpoint.

    Args:
        raw: the note.
        log_key: the log's key; its name is the log's origin.
        witnesses: keys of trusted witnesses.
        quorum: number of them that must have cosigned.

    Raises:
        NoteError: it is malformed or of another log, a key is of the wrong kind, a signature is
            missing or wrong, or too few witnesses have cosigned.
    """
    _check_keys(log_key, witnesses)
    note = SignedNote.parse(raw)
    checkpoint = Checkpoint.parse(note.text)
    if checkpoint.origin != log_key.name:
        raise NoteError(
            f"the checkpoint is of log {checkpoint.origin!r}, and the key is of {log_key.name!r}"
        )
    signers = note.find_signers([log_key, *dict.fromkeys(witnesses)])
    if signers.pop(log_key, None) is None:
        raise NoteError(f"the checkpoint has no signature of the log's key {log_key.name}")
    # Keys, not names: one witness may be listed under a name twice.
    num_signers = len({key.public for key in signers})
    if num_signers < quorum:
        raise NoteError(
            f"{num_signers} of the named witnesses have cosigned the checkpoint, and {quorum} must"
        )
    return VerifiedCheckpoint(checkpoint, {key.name: time for key, time in signers.items()})


def _check_keys(log_key: VerifierKey, witnesses: Collection[VerifierKey]) -> None:
    if log_key.algorithm != ED25519:
        raise NoteError(f"the key of {log_key.name} is one of a witness, not of a log")
    for key in witnesses:
        if key.algorithm != COSIGNATURE:
            raise NoteError(f"the key of {key.name} is one of a log, not of a witness")
        if key.public == log_key.public:
            raise NoteError(
                f"the witness {key.name} has the key of the log: it would witness itself"
            )


def parse_size(text: str) -> int:
    """Read the size of a tree: a decimal number without leading zeros.

    Raises:
        NoteError: it is something else, or larger than any tree.
    """
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_TREE_SIZE))
    size = int(text) if is_number else -1
    if not 0 <= size <= MAX_TREE_SIZE or str(size) != text:
        raise NoteError(f"{text[:80]!r} is no size of a log")
    return size
