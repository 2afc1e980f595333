"""A transparency log of a journal with signed generations."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from journal_records import begin, call, list_steps, started

from whence.proof.checkpoints import Checkpoint, verify_checkpoint
from whence.proof.notes import COSIGNATURE, NoteSigner, VerifierKey
from whence.v1 import generation_pb2
from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.journal.journal import Journal
from whence_server.journal.rows import FinishIndex
from whence_server.proof.log.log import LogOptions, TransparencyLog
from whence_server.proof.log.sequencer import SequencerOptions
from whence_server.proof.signer import PrivateKey
from whence_server.proof.statements import Statements
from whence_server.proof.witness.memory import WitnessMemory
from whence_server.proof.witness.server import RateLimit, WitnessServer
from whence_server.proof.witness.witness import Witness

PACE = SequencerOptions(interval_s=0.1, max_entries=100)


SIGNER = PrivateKey.generate()


def end_signed(journal: Journal, generation_id: str, number: int, text: str = "") -> None:
    """Finish a generation with the statement of what `begin` writes for a number."""
    finished = generation_pb2.GenerationFinished(
        finish_reason=generation_pb2.FINISH_REASON_LENGTH,
        num_generated_tokens=3,
        sequences=[generation_pb2.SequenceResult(text=text)],
    )
    leaves = Statements(lambda: SIGNER).begin(generation_id)
    leaves.add(EntryKind.STARTED, started(generation_id, number).SerializeToString())
    for step in list_steps(number):
        leaves.add(EntryKind.STEP, step)
    payload = finished.SerializeToString()
    index = FinishIndex(FinishReason.LENGTH, 3, text)
    journal.finish(generation_id, payload + leaves.sign(payload), index)
    call(journal, generation_id)


def make_options(folder: Path, **given: object) -> LogOptions:
    """Return options whose key lies in a folder."""
    return LogOptions(**{"key": folder / "log-key.pem", "pace": PACE, **given})  # type: ignore[arg-type]


@asynccontextmanager
async def open_log(
    folder: Path, options: LogOptions | None = None, journal_dir: Path | None = None
) -> AsyncIterator[tuple[Journal, TransparencyLog]]:
    """Open a journal with its log; both are closed at the end."""
    journal = await Journal.open(journal_dir or folder / "data")
    try:
        log = await TransparencyLog.open(journal, options or make_options(folder))
        await log.start()
        try:
            yield journal, log
        finally:
            assert await log.flush(30)
            await log.close()
    finally:
        await journal.close()


def generate(journal: Journal, *numbers: int) -> None:
    """Record whole generations."""
    for number in numbers:
        generation_id = f"00000000-0000-4000-9000-{number:012d}"
        begin(journal, generation_id, number)
        end_signed(journal, generation_id, number)


async def grow(journal: Journal, log: TransparencyLog, *numbers: int) -> Checkpoint:
    """Record whole generations, and return the verified checkpoint with them."""
    generate(journal, *numbers)
    await journal.flush()
    assert await log.flush(30)
    raw = await log.read_checkpoint()
    return verify_checkpoint(raw, VerifierKey.parse(log.verifier_key)).checkpoint


@asynccontextmanager
async def run_witness(
    folder: Path, *logs: VerifierKey, port: int = 0
) -> AsyncIterator[tuple[str, VerifierKey]]:
    """Run a witness; yield its URL and key."""
    private = Ed25519PrivateKey.from_private_bytes(b"w" * 32)
    signer = NoteSigner("example.com/w", private, COSIGNATURE)
    memory = WitnessMemory(folder / "witness.db", [key.name for key in logs])
    witness = Witness(signer, {key.name: [key] for key in logs}, memory)
    server = WitnessServer(witness, "127.0.0.1", port, RateLimit(1_000, 1_000))
    await server.start()
    try:
        yield server.url, signer.key
    finally:
        await server.close()
        memory.close()
