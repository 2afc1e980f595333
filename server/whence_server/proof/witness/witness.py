"""Decisions of a witness: which checkpoints it cosigns, and what it answers to the others."""

import base64
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple

from whence.proof.checkpoints import Checkpoint, parse_size
from whence.proof.merkle import verify_consistency
from whence.proof.merkle_tree import HASH_BYTES
from whence.proof.notes import NoteError, NoteSigner, SignedNote, VerifierKey
from whence_server.proof.witness.memory import LogPlace, WitnessMemory

MAX_BODY_BYTES = 64 << 10
MAX_PROOF_HASHES = 63
SIZE_TYPE, TEXT_TYPE = "text/x.tlog.size", "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """Answer to a request."""

    status: HTTPStatus
    body: str
    content_type: str = TEXT_TYPE
    is_signed: bool = False
    """True if a log that the witness knows has signed the request's checkpoint."""


class Request(NamedTuple):
    """Request for a cosignature."""

    old_size: int
    proof: list[bytes]
    note: SignedNote
    checkpoint: Checkpoint


class Witness:
    """A witness of several logs.

    Args:
        signer: signs cosignatures.
        logs: keys of the logs that it knows, by origin; a log may have several.
        memory: what it has cosigned.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        signer: NoteSigner,
        logs: Mapping[str, list[VerifierKey]],
        memory: WitnessMemory,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._signer = signer
        self._logs = logs
        self._memory = memory
        self._clock = clock

    def answer(self, body: bytes) -> Answer:
        """Answer a request for a cosignature, "add-checkpoint" of C2SP tlog-witness."""
        try:
            request = parse_request(body)
        except NoteError as error:
            return Answer(HTTPStatus.BAD_REQUEST, f"{error}\n")
        origin = request.checkpoint.origin
        keys = self._logs.get(origin)
        if keys is None:
            return Answer(HTTPStatus.NOT_FOUND, f"this witness does not know log {origin!r}\n")
        try:
            signed = request.note.find_signers(keys)
        except NoteError as error:
            return Answer(HTTPStatus.FORBIDDEN, f"{error}\n")
        if not signed:
            return Answer(HTTPStatus.FORBIDDEN, "no signature is of a key of this log\n")
        return self._judge(request)._replace(is_signed=True)

    def _judge(self, request: Request) -> Answer:
        """Answer a request that the log has signed."""
        checkpoint = request.checkpoint
        if request.old_size > checkpoint.size:
            why = f"the old size, {request.old_size}, is beyond the checkpoint's\n"
            return Answer(HTTPStatus.BAD_REQUEST, why)
        known = self._memory.read(checkpoint.origin)
        if request.old_size != known.size:
            return _tell_size(known)
        new = LogPlace(checkpoint.size, checkpoint.root)
        if known.size == new.size and known.root != new.root:
            # C2SP: the same size with another root is a conflict that no proof can mend.
            return Answer(HTTPStatus.CONFLICT, f"{known.size}\n", SIZE_TYPE)
        if not verify_consistency(known.size, known.root, new.size, new.root, request.proof):
            why = "the proof does not show that the log only grew\n"
            return Answer(HTTPStatus.UNPROCESSABLE_ENTITY, why)
        if not self._memory.advance(checkpoint.origin, known, new):
            return _tell_size(self._memory.read(checkpoint.origin))
        signature = self._signer.sign(request.note.text, int(self._clock()))
        return Answer(HTTPStatus.OK, f"{signature.format()}\n")


def _tell_size(known: LogPlace) -> Answer:
    return Answer(HTTPStatus.CONFLICT, f"{known.size}\n", SIZE_TYPE)


def parse_request(body: bytes) -> Request:
    """Read the body of a request: old size, proof, an empty line, the signed checkpoint.

    Raises:
        NoteError: it is malformed or too large.
    """
    if len(body) > MAX_BODY_BYTES:
        raise NoteError(f"the request has more than {MAX_BODY_BYTES} bytes")
    head, found, rest = body.partition(b"\n\n")
    if not found:
        raise NoteError("expected `old SIZE`, a proof, an empty line and a checkpoint")
    try:
        first, *encoded = head.decode("ascii").split("\n")
        proof = [base64.b64decode(line, validate=True) for line in encoded]
    except ValueError:
        raise NoteError("the proof is no list of hashes in base64") from None
    if len(proof) > MAX_PROOF_HASHES or any(len(node) != HASH_BYTES for node in proof):
        raise NoteError(f"a proof has at most {MAX_PROOF_HASHES} hashes of {HASH_BYTES} bytes")
    word, _, size = first.partition(" ")
    if word != "old":
        raise NoteError("the first line must be `old SIZE`")
    note = SignedNote.parse(rest)
    return Request(parse_size(size), proof, note, Checkpoint.parse(note.text))
