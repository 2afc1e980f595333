"""Export of a generation as a bundle, a piece at a time."""

import hashlib
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.proof.bundle_format import (
    spell_head,
    spell_hidden_leaf,
    spell_open_leaf,
    spell_tail,
)
from whence.proof.leaves import derive_prompt_key, derive_salt, hash_entry
from whence.proof.log_check import spell_log
from whence.v1 import generation_pb2, proof_pb2, step_pb2
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    CheckpointPendingError,
    GenerationRunningError,
    GenerationUnsignedError,
    RecordDamagedError,
    StatementNotLoggedError,
)
from whence_server.journal.journal import Journal
from whence_server.proof.log.log import TransparencyLog

# A page is spelled in the thread of the event loop: its size bounds how long streams wait.
_PAGE, _PAGE_BYTES = 500, 1 << 20
_OUTPUT = frozenset({EntryKind.STEP, EntryKind.BEAM_ROUND})
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
) -> AsyncGenerator[str, None]:
    """Yield the JSON of a bundle in pieces. Raises as `read_statement`."""
    statement = await read_statement(journal, generation_id)
    secret = statement.leaf_secret
    yield spell_head(statement.envelope, keys)
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
        yield ("," if offset else "") + ",".join(leaves)
        offset, num_leaves = entries[-1].offset, num_leaves + len(entries)
    logged = await _spell_log_proof(log, statement.envelope)
    yield spell_tail(prompt_key, logged)


async def _spell_log_proof(log: TransparencyLog | None, envelope: bytes) -> str:
    """Return the JSON of the proof that a statement is in the log; "" if none covers it yet."""
    if log is None:
        return ""
    try:
        proof = await log.prove_inclusion(hashlib.sha256(envelope).digest())
    except (StatementNotLoggedError, CheckpointPendingError):
        return ""
    return spell_log(proof.leaf_index, proof.size, proof.path, proof.checkpoint)
