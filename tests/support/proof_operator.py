"""An operator with full access: it writes its server's record anew, with the server's own keys."""

import asyncio
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

from journal_records import call
from proof_auditor import Shown, ask

from whence.proof.notes import SignedNote, parse_signatures
from whence.v1.verification_pb2 import GenerationRecord
from whence_server.domain.entries import EntryKind
from whence_server.journal.derive import derive_finished_index, derive_started_index
from whence_server.journal.journal import Journal
from whence_server.proof.key_files import read_private_key
from whence_server.proof.log import tables
from whence_server.proof.log.log import LogOptions, TransparencyLog
from whence_server.proof.log.sequencer import SequencerOptions
from whence_server.proof.signer import PrivateKey
from whence_server.proof.signing_keys import KEY_NAME
from whence_server.proof.statements import Statements
from whence_server.proof.witness.witness import Witness
from whence_server.rpc.bundles import Disclosure, spell_bundle

LOG_KEY_NAME = "log-key.pem"
PACE = SequencerOptions(interval_s=0.05)


@dataclass(frozen=True, slots=True)
class Operator:
    """Operator of a server that is stopped.

    Attributes:
        data_dir: its data directory, with its keys.
        origin: name of its transparency log.
        document: document that it says to be in the training set.
        run_witness: runs the witness, which it can ask for cosignatures and does not own.
    """

    data_dir: Path
    origin: str
    document: bytes
    run_witness: Callable[[], AbstractContextManager[Witness]]

    def copy(self, store: Path) -> Path:
        """Copy the data directory."""
        store.mkdir()
        for path in self.data_dir.iterdir():
            if path.is_file():
                shutil.copy2(path, store)
        return store

    def extend(self, store: Path, record: GenerationRecord, *, in_log: bool = True) -> Shown:
        """Add a generation to a copy of the store, as a dishonest server would have done."""
        return self.write(self.copy(store), [record], in_log=in_log)

    def write(
        self,
        store: Path,
        records: Iterable[GenerationRecord],
        *,
        signing_key: Path | None = None,
        log_key: Path | None = None,
        in_log: bool = True,
    ) -> Shown:
        """Write generations to a store, which is new or a copy.

        Those without a statement are signed. The witness is asked for its cosignature.
        """
        signer = read_private_key(signing_key or self.data_dir / KEY_NAME)
        options = LogOptions(
            key=log_key or self.data_dir / LOG_KEY_NAME, origin=self.origin, pace=PACE
        )
        listed = list(records)
        bundles = asyncio.run(self._write(store, listed, signer, options if in_log else None))
        ends = {record.started.generation_id: record.finished for record in listed}
        return Shown(store, bundles, ends, self.document)

    async def _write(
        self,
        store: Path,
        records: list[GenerationRecord],
        signer: PrivateKey,
        options: LogOptions | None,
    ) -> dict[str, bytes]:
        journal = await Journal.open(store)
        try:
            for record in records:
                _append(journal, record, signer)
            await journal.flush()
            log = None if options is None else await self._grow_log(journal, options)
            ids = [record.started.generation_id for record in records]
            return {it: await _export(journal, it, log) for it in ids}
        finally:
            await journal.close()

    async def _grow_log(self, journal: Journal, options: LogOptions) -> TransparencyLog:
        """Append to the transparency log what is not in it, and have it cosigned if possible."""
        log = await TransparencyLog.open(journal, options)
        await log.start()
        try:
            assert await log.flush(60)
        finally:
            await log.close()
        with self.run_witness() as witness:
            note, answer = await journal.tree.read(partial(ask, witness=witness))
        if answer.status == HTTPStatus.OK:
            cosigned = SignedNote(note.text, (*note.signatures, *parse_signatures(answer.body)))
            size = int(note.text.split("\n")[1])
            await journal.tree.change(
                lambda it: tables.publish_checkpoint(it, size, cosigned.format())
            )
        return log


def forge(record: GenerationRecord, *, is_new: bool = True) -> GenerationRecord:
    """Return a copy that is signed when it is written; with another id if it is a new one."""
    forged = GenerationRecord()
    forged.CopyFrom(record)
    forged.finished.ClearField("statement")
    if is_new:
        forged.started.generation_id = str(uuid.uuid4())
        forged.started.trace_id = uuid.uuid4().hex
    return forged


def _append(journal: Journal, record: GenerationRecord, signer: PrivateKey) -> None:
    generation_id, end_ns = record.started.generation_id, record.finished.end_time.ToNanoseconds()
    is_signed = record.finished.HasField("statement")
    # Signed at the time that the record claims for its end.
    statements = None if is_signed else Statements(lambda: signer, clock=lambda: end_ns)
    journal.signing.use(statements)
    started = record.started.SerializeToString()
    journal.create(derive_started_index(started), started)
    for kind, messages in (
        (EntryKind.PROMPT_STEP, record.prompt_steps),
        (EntryKind.STEP, record.steps),
        (EntryKind.BEAM_ROUND, record.beam_rounds),
    ):
        for message in messages:
            journal.append(generation_id, kind, message.SerializeToString())
    finished = record.finished.SerializeToString()
    journal.finish(generation_id, finished, derive_finished_index(finished))
    call(journal, generation_id)


async def _export(journal: Journal, generation_id: str, log: TransparencyLog | None) -> bytes:
    pieces = spell_bundle(journal, generation_id, [], Disclosure(), log)
    return "".join([piece async for piece in pieces]).encode()
