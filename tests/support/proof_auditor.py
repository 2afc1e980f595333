"""An auditor of what an operator shows: with keys, a noted checkpoint, old files and the weights.

Every check returns what it found; "" if nothing is at fault.
"""

import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import apsw
from witnessed import KEY_NAME, MEMORY_NAME, WITNESS

from whence.proof.bundle import read_bundle
from whence.proof.notes import COSIGNATURE, NoteSigner, SignedNote, VerifierKey
from whence.proof.verification import LogKeys, Origin, verify_bundle
from whence.summary.verifications import describe_event
from whence.v1 import verification_pb2 as pb
from whence.v1.generation_pb2 import GenerationFinished
from whence_server.analysis.replay.models import Models
from whence_server.analysis.replay.verifier import wrap
from whence_server.cli import main as server_main
from whence_server.proof.log import tables
from whence_server.proof.log.keys import load_key
from whence_server.proof.log.witnesses import format_request
from whence_server.proof.witness.memory import WitnessMemory
from whence_server.proof.witness.witness import Answer, Witness
from whence_server.rpc.verification_record import make_question

GOOD = {pb.VERDICT_VERIFIED, pb.VERDICT_VERIFIED_WITHIN_MARGIN}


class Shown(NamedTuple):
    """Store and files that an operator shows.

    Attributes:
        store: data directory, of a server that is stopped.
        bundles: bundles of generations, by id.
        ends: their last entries, which have the texts' whole results.
        document: document that is said to be in the training set.
    """

    store: Path
    bundles: Mapping[str, bytes]
    ends: Mapping[str, GenerationFinished]
    document: bytes


@dataclass(frozen=True, slots=True)
class Auditor:
    """Keys, files and weights that an auditor has from other places than the present store.

    Attributes:
        keys: public keys of the server, PEM.
        training_keys: public keys of the trainer, PEM.
        log: keys of the transparency log and of its witness.
        training: signature of the training, `lineage.sig`.
        document_proof: proof of the document, output of `whence training proof --json`.
        checkpoint: file with a checkpoint that was fetched earlier.
        old_bundle: file with a bundle that somebody exported earlier.
        models: loads the weights.
        witness: folder with the files of the witness.
    """

    keys: tuple[str, ...]
    training_keys: tuple[str, ...]
    log: LogKeys
    training: bytes
    document_proof: bytes
    checkpoint: Path
    old_bundle: Path
    models: Models
    witness: Path

    def check_bundle(self, shown: Shown, generation_id: str) -> str:
        """Check signature, record, log, witness, training and document: `verify-bundle`."""
        origin = Origin(self.training, self.training_keys, shown.document, self.document_proof)
        report = verify_bundle(shown.bundles[generation_id], self.keys, origin, self.log)
        if report.verified:
            return ""
        return "; ".join(f"{it.name}: {it.detail}" for it in report.checks if it.passed is False)

    def compute_again(self, shown: Shown, generation_id: str) -> str:
        """Compute a generation again, from its bundle: `verify-generation`."""
        question = make_question(
            open_record(shown.bundles[generation_id], shown.ends[generation_id])
        )
        verifier = self.models.get_verifier(question)
        events = [wrap(event) for event in verifier.verify(question)]
        if events[-1].result.verdict in GOOD:
            return ""
        return "\n".join(line for event in events for line in describe_event(event))

    def verify_store(self, shown: Shown, _: str) -> str:
        """Verify a store by itself: `whence-server verify`."""
        return _verify(shown.store)

    def compare_with_checkpoint(self, shown: Shown, _: str) -> str:
        """Verify a store with the noted checkpoint: `verify --checkpoint`."""
        return _verify(shown.store, self.checkpoint)

    def compare_with_bundle(self, shown: Shown, _: str) -> str:
        """Verify a store with the checkpoint of the old bundle: `verify --checkpoint`."""
        return _verify(shown.store, self.old_bundle)

    def ask_witness(self, shown: Shown, _: str) -> str:
        """Ask the witness to cosign the store's newest checkpoint."""
        with self.run_witness() as witness:
            with closing(apsw.Connection(str(shown.store / "journal.db"))) as connection:
                answer = ask(connection, witness)[1]
        return "" if answer.status == HTTPStatus.OK else f"HTTP {answer.status:d}: {answer.body}"

    @contextmanager
    def run_witness(self) -> Iterator[Witness]:
        """Run the witness in this process, with a copy of what it remembers."""
        log_key = VerifierKey.parse(self.log.log)
        with TemporaryDirectory() as directory:
            for path in self.witness.glob(f"{MEMORY_NAME}*"):
                shutil.copy(path, directory)
            memory = WitnessMemory(Path(directory) / MEMORY_NAME, [log_key.name])
            try:
                private = load_key("--key", self.witness / KEY_NAME)
                signer = NoteSigner(WITNESS, private, COSIGNATURE)
                yield Witness(signer, {log_key.name: [log_key]}, memory)
            finally:
                memory.close()


def open_record(bundle: bytes, finished: GenerationFinished) -> pb.GenerationRecord:
    """Return a generation from the entries that its bundle shows, and its end."""
    record = pb.GenerationRecord(finished=finished)
    kinds: dict[str, Any] = {
        "prompt_step": record.prompt_steps,
        "step": record.steps,
        "beam_round": record.beam_rounds,
    }
    for _, leaf in read_bundle(bundle).list_open():
        if leaf.kind_name == "started":
            record.started.ParseFromString(leaf.entry)
        else:
            kinds[leaf.kind_name].add().ParseFromString(leaf.entry)
    return record


def ask(connection: Any, witness: Witness) -> tuple[SignedNote, Answer]:
    """Ask a witness to cosign a log's newest checkpoint, as the log's server does."""
    newest = tables.find_newest_checkpoint(connection, published=False)
    assert newest is not None
    note = SignedNote.parse(newest.note)
    answer = witness.answer(format_request(0, [], note))
    if answer.status == HTTPStatus.CONFLICT and (known := int(answer.body)) <= newest.size:
        proof = tables.make_reader(connection, newest.size).prove_consistency(known)
        answer = witness.answer(format_request(known, proof, note))
    return note, answer


def _verify(store: Path, *known: Path) -> str:
    told = io.StringIO()
    checkpoints = [f"--checkpoint={path}" for path in known]
    with redirect_stderr(told), redirect_stdout(io.StringIO()):
        status = server_main(["verify", f"--data-dir={store}", *checkpoints])
    return told.getvalue() or f"exit status {status}" if status else ""
