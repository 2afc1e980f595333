"""Export of a generation as a bundle, a piece at a time."""

import hashlib
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.proof.bundle_format import (
    MAX_BYTES,
    MAX_LEAVES,
    spell_head,
    spell_hidden_leaf,
    spell_open_leaf,
    spell_tail,
)
from whence.proof.envelope import STATEMENT_TYPE, parse_envelope
from whence.proof.faults import FormatError
from whence.proof.leaves import derive_prompt_key, derive_salt, hash_entry
from whence.proof.log_check import spell_log
from whence.proof.statement import parse_statement
from whence.v1 import generation_pb2, proof_pb2, step_pb2
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    BundleTooLargeError,
    CheckpointPendingError,
    GenerationRunningError,
    GenerationUnsignedError,
    NoTransparencyLogError,
    RecordDamagedError,
    StatementNotLoggedError,
)
from whence_server.journal.journal import Journal
from whence_server.proof.log.log import TransparencyLog

# A page is spelled in the thread of the event loop: its size bounds how long streams wait.
_PAGE, _PAGE_BYTES = 500, 1 << 20
_OUTPUT = frozenset({EntryKind.STEP, EntryKind.BEAM_ROUND})
SPARE_BYTES = 1 << 20
"""Room for the bundle's end below the limit."""
_LEAVES = (EntryKind.STARTED, EntryKind.PROMPT_STEP, EntryKind.STEP, EntryKind.BEAM_ROUND)


class Disclosure(NamedTuple):
    """Choice of the entries that a bundle shows.

    A forced text is in the start, too: where not all of it is shown, the start is hidden.

    Attributes:
        prompt: True shows the start, and the prompt's steps.
        text: True shows steps and beam search rounds.
        steps: indexes of the only steps that are shown; None for all of them.
    """

    prompt: bool = True
    text: bool = True
    steps: range | None = None

    def shows(self, entry: Entry) -> bool:
        """Return whether an entry is shown. Raises DecodeError if it is damaged."""
        if entry.kind is EntryKind.STARTED:
            return self.prompt and (self._shows_whole_text or not _has_text(entry.payload))
        if entry.kind not in _OUTPUT:
            return self.prompt
        if not self.text or self.steps is None:
            return self.text
        if entry.kind is not EntryKind.STEP:
            return False
        return step_pb2.Step.FromString(entry.payload).index in self.steps

    @property
    def _shows_whole_text(self) -> bool:
        return self.text and self.steps is None


def _has_text(started: bytes) -> bool:
    """Return whether a start has output: that of its request's forced text, or of its parent."""
    message = generation_pb2.GenerationStarted.FromString(started)
    forced = message.effective_decoding.forced
    return bool(
        forced.text or forced.tokens.token_ids or message.fork.HasField("replaced_token_id")
    )


async def read_statement(journal: Journal, generation_id: str) -> proof_pb2.SignedStatement:
    """Return the signed statement of a generation that has ended.

    Raises:
        GenerationNotFoundError: the generation does not exist, or was deleted.
        GenerationRunningError: it has not ended.
        GenerationUnsignedError: it has no statement.
        RecordDamagedError: its end cannot be read.
    """
    await journal.get(generation_id)
    entries = await journal.read(generation_id, limit=1, kinds=(EntryKind.FINISHED,))
    if not entries:
        raise GenerationRunningError(generation_id)
    try:
        finished = generation_pb2.GenerationFinished.FromString(entries[0].payload)
    except DecodeError as error:
        raise RecordDamagedError(generation_id, f"its end is not a message: {error}") from error
    if not finished.statement.envelope:
        raise GenerationUnsignedError(generation_id)
    return finished.statement


async def spell_bundle(
    journal: Journal,
    generation_id: str,
    keys: Sequence[bytes],
    disclosure: Disclosure,
    log: TransparencyLog | None = None,
    *,
    known_log_size: int = 0,
) -> AsyncGenerator[str, None]:
    """Yield the JSON of a bundle in pieces.

    Args:
        journal: the journal.
        generation_id: id of the generation.
        keys: entries of the server's key list.
        disclosure: choice of what is shown.
        log: the transparency log; None without one.
        known_log_size: number of entries of an earlier log that this one is proven to continue.

    Raises:
        BundleTooLargeError: those who check bundles do not read so large a one.
        NoTransparencyLogError: an earlier log is named, and the server keeps none.
        StatementNotLoggedError: as before, and the statement is not in the log.
        CheckpointPendingError: as before, and no published checkpoint covers it yet.
        InvalidRequestError: the earlier log has more entries than the published one.
        WhenceError: as `read_statement`.
    """
    statement = await read_statement(journal, generation_id)
    _check_num_leaves(generation_id, statement.envelope)
    logged = await _spell_log_proof(log, statement.envelope, known_log_size)
    secret = statement.leaf_secret
    yield (head := spell_head(statement.envelope, keys))
    num_bytes = len(head) + len(logged) + SPARE_BYTES
    num_leaves = offset = 0
    prompt_key = b""
    while entries := await journal.read(
        generation_id, offset, _PAGE, kinds=_LEAVES, max_bytes=_PAGE_BYTES
    ):
        leaves = []
        for index, entry in enumerate(entries, num_leaves):
            salt = derive_salt(secret, index)
            try:
                is_shown = disclosure.shows(entry)
            except DecodeError as error:
                raise RecordDamagedError(
                    generation_id, f"its entry {entry.offset} is not a message: {error}"
                ) from error
            if is_shown:
                leaves.append(spell_open_leaf(entry.kind, salt, entry.payload))
            else:
                leaves.append(spell_hidden_leaf(hash_entry(salt, entry.kind, entry.payload)))
            if is_shown and entry.kind is EntryKind.STARTED:
                prompt_key = derive_prompt_key(secret)
        piece = ("," if offset else "") + ",".join(leaves)
        num_bytes += len(piece)
        if num_bytes > MAX_BYTES:
            raise BundleTooLargeError(
                generation_id,
                f"more than {MAX_BYTES >> 20} MiB, the most that is read by those who check it",
                "hide its prompt or its text, or show some steps alone",
            )
        yield piece
        offset, num_leaves = entries[-1].offset, num_leaves + len(entries)
    yield spell_tail(prompt_key, logged)


def _check_num_leaves(generation_id: str, envelope: bytes) -> None:
    """Refuse a generation whose bundle nobody would read, whatever of it is hidden."""
    try:
        payload = parse_envelope(envelope, STATEMENT_TYPE, "the envelope").payload
        num_leaves = parse_statement(payload).num_leaves
    except FormatError as error:
        raise RecordDamagedError(generation_id, f"its statement: {error}") from error
    if num_leaves > MAX_LEAVES:
        raise BundleTooLargeError(
            generation_id,
            f"{num_leaves:,} entries, and those who check it read at most {MAX_LEAVES:,}",
            "`whence verify` verifies it on the server, and --save writes its record, unsigned",
        )


async def _spell_log_proof(
    log: TransparencyLog | None, envelope: bytes, known_log_size: int
) -> str:
    """Return the JSON of the proof that a statement is in the log; "" if none covers it yet."""
    if log is None:
        if known_log_size:
            raise NoTransparencyLogError
        return ""
    try:
        proof = await log.prove_inclusion(hashlib.sha256(envelope).digest(), known_log_size)
    except (StatementNotLoggedError, CheckpointPendingError):
        if known_log_size:
            raise
        return ""
    earlier = (known_log_size, proof.consistency) if known_log_size else None
    return spell_log(proof.leaf_index, proof.size, proof.path, proof.checkpoint, earlier)
