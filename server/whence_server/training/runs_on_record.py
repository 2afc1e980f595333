"""A run's record as whoever verifies it needs it: found, walked through, and held to itself."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from whence.v1.training_pb2 import (
    AttemptStarted,
    Checkpoint,
    TrainingDataset,
    TrainingEvent,
    TrainingRunStarted,
)
from whence_server.domain.errors import LineageError
from whence_server.lineage.merkle import MerkleTree
from whence_server.lineage.places import records_near
from whence_server.lineage.reader import RecordReader, is_being_written


@dataclass(slots=True)
class RunOnRecord:
    """A whole record, its chain verified.

    Attributes:
        path: the record's file.
        head: the chain's newest hash, as hex.
        num_entries: how many are whole.
        num_torn_bytes: what follows them in the file.
        is_being_written: whether that is because an entry is just being written.
        started: the run's start.
        dataset: what it reads; empty where none is on record.
        document_digests: raw SHA-256 of each document, by index.
        attempts: in order.
        examples: ids of those trained on in each step that counts, by number, where asked for.
        checkpoints: in order; those of superseded steps are there too.
        superseded: positions in `checkpoints` of those whose steps were discarded later.
    """

    path: Path
    head: str = ""
    num_entries: int = 0
    num_torn_bytes: int = 0
    is_being_written: bool = False
    started: TrainingRunStarted = field(default_factory=TrainingRunStarted)
    dataset: TrainingDataset = field(default_factory=TrainingDataset)
    document_digests: list[bytes] = field(default_factory=list)
    attempts: list[AttemptStarted] = field(default_factory=list)
    examples: "dict[int, array[int]]" = field(default_factory=dict)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    superseded: set[int] = field(default_factory=set)

    @property
    def directory(self) -> Path:
        """Where the record lies: what paths in it are relative to."""
        return self.path.parent

    def directory_of(self, checkpoint: Checkpoint) -> Path:
        """Where a checkpoint's weights were written, seen from where the record lies now."""
        return self.directory / checkpoint.path

    def counting_checkpoints(self) -> list[Checkpoint]:
        """Those whose steps count, in order."""
        return [c for i, c in enumerate(self.checkpoints) if i not in self.superseded]

    def attempt(self, number: int) -> AttemptStarted:
        """One of the attempts; an empty one where it is not on record."""
        return next((a for a in self.attempts if a.attempt == number), AttemptStarted())

    def _take(self, event: TrainingEvent, *, with_examples: bool) -> None:
        match event.WhichOneof("event"):
            case "started":
                self.started = event.started
            case "dataset":
                self.dataset = event.dataset
            case "documents":
                self.document_digests += _digests(event)
            case "attempt_started":
                self.attempts.append(event.attempt_started)
                resumed = event.attempt_started.resumed_step
                self.examples = {n: ids for n, ids in self.examples.items() if n <= resumed}
                self.superseded |= {i for i, c in enumerate(self.checkpoints) if c.step > resumed}
            case "step" if with_examples:
                ids = (example for rank in event.step.ranks for example in rank.example_ids)
                self.examples[event.step.step] = array("Q", ids)
            case "checkpoint":
                self.checkpoints.append(event.checkpoint)


def find_record(directory: Path) -> Path | None:
    """The record of the run that a model may have come of: beside it, or up to two levels above."""
    return next(records_near(directory.absolute()), None)


def read_run(path: Path, *, with_examples: bool = False) -> RunOnRecord:
    """Reads a record to its end, and holds its dataset to the Merkle root.

    Args:
        path: the record's file.
        with_examples: whether to keep what each step trained on: 8 bytes an example.

    Raises:
        LineageError: it cannot be read, its chain is broken, or its documents do not make its root.
    """
    reader = RecordReader(path)
    run = RunOnRecord(path)
    _read_on(run, reader, with_examples=with_examples)
    if run.num_torn_bytes:
        run.is_being_written = is_being_written(path)
        if not run.is_being_written:
            # Whoever wrote it may have ended since: now nothing changes any more.
            _read_on(run, reader, with_examples=with_examples)
    if not reader.position:
        raise LineageError(f"{path} is not an intact record: it has no whole entry")
    run.head, run.num_entries = reader.head.hex(), reader.position
    _check_documents(run)
    return run


def _read_on(run: RunOnRecord, reader: RecordReader, *, with_examples: bool) -> None:
    while batch := reader.read():
        for recorded in batch:
            run._take(recorded.event, with_examples=with_examples)  # noqa: SLF001 - its own module
    run.num_torn_bytes = run.path.stat().st_size - reader.end_byte


def _check_documents(run: RunOnRecord) -> None:
    if not run.dataset.merkle_root:
        return
    root = MerkleTree(run.document_digests).root.hex()
    if root != run.dataset.merkle_root:
        raise LineageError(
            f"{run.path}: its {len(run.document_digests)} documents have the Merkle root {root}, "
            f"and the dataset on record has {run.dataset.merkle_root}"
        )


def _digests(event: TrainingEvent) -> Iterable[bytes]:
    return (bytes.fromhex(document.sha256) for document in event.documents.documents)
