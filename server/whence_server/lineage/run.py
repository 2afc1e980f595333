"""A training run folded from its record, as far as that is written."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from whence.v1 import training_pb2 as pb
from whence_server.domain.errors import LineageError
from whence_server.lineage.lookup import Place, event_at
from whence_server.lineage.reader import RecordedEvent, RecordReader
from whence_server.lineage.steps import StepIndex
from whence_server.lineage.training_set import TrainingSet

_ENTRIES_A_MARK = 1_024


def _never() -> bool:
    return False


class _Mark(NamedTuple):
    """Where a reader may begin in the middle of a record."""

    position: int
    head: bytes
    end_byte: int


class TrainingRun:
    """What a record says, without its steps, documents and examples: those are looked up in it.

    Not for several threads at once.

    Args:
        reader: has read the record's first entries.
        events: those.

    Attributes:
        path: the record's file.
        started: how the run was set up.
        training_set: what it reads.
        attempts: in order.
        endings: of those that ended in an orderly way.
        checkpoints: by ascending position, without their tensors.
        evaluations: by ascending position.
        steps: where each lies, and which count.
        state: a TrainingState.
        last_time_ns: when the newest thing on record happened, in Unix nanoseconds.
    """

    def __init__(self, reader: RecordReader, events: list[RecordedEvent]) -> None:
        self.path = reader.path
        self.started = events[0].event.started
        self.training_set = TrainingSet(reader.path)
        self.attempts: list[pb.AttemptStarted] = []
        self.endings: list[pb.AttemptFinished] = []
        self.checkpoints: list[pb.Checkpoint] = []
        self.evaluations: list[pb.Evaluation] = []
        self.steps = StepIndex()
        self.state = pb.TRAINING_STATE_RUNNING
        self.last_time_ns = self.started.start_time.ToNanoseconds()
        self._attempt_start_ns = self.last_time_ns
        self._marks: list[_Mark] = []
        self._reader = reader
        self._fold(events)

    @classmethod
    def open(cls, path: Path, stopped: Callable[[], bool] = _never) -> "TrainingRun | None":
        """Folds a record; None where not even its first entry is whole yet.

        Args:
            path: the record's file.
            stopped: asked now and then whether to leave it at that.

        Raises:
            LineageError: it cannot be read, or is not intact.
        """
        reader = RecordReader(path)
        events = reader.read()
        if not events:
            return None
        run = cls(reader, events)
        run.refresh(stopped)
        return run

    def refresh(self, stopped: Callable[[], bool] = _never) -> None:
        """Folds what has been recorded since.

        Raises:
            LineageError: as `open`.
        """
        while not stopped() and (events := self._reader.read()):
            self._fold(events)

    @property
    def id(self) -> str:
        """The training run's id."""
        return self.started.training_run_id

    @property
    def num_entries(self) -> int:
        """How many entries of the record were folded."""
        return self._reader.position

    @property
    def head(self) -> str:
        """The chain's hash after the last of them, as 64 hex digits."""
        return self._reader.head.hex()

    @property
    def ended(self) -> bool:
        """Whether its last attempt has ended in an orderly way."""
        return self.state != pb.TRAINING_STATE_RUNNING

    def newest_step(self) -> pb.TrainingStep | None:
        """The newest step that counts.

        Raises:
            LineageError: the record is not the one that was read before.
        """
        ref = self.steps.newest
        return None if ref is None else event_at(self.path, ref.place).step

    def reader_after(self, position: int) -> RecordReader:
        """A reader of its own, which has read up to some entry at or before this one.

        Args:
            position: at most `num_entries`.
        """
        reader = RecordReader(self.path)
        mark = _Mark(self._reader.position, self._reader.head, self._reader.end_byte)
        if position < mark.position:
            which = position // _ENTRIES_A_MARK
            mark = self._marks[which - 1] if which else _Mark(0, b"", 0)
        reader.position, reader.head, reader.end_byte = mark
        reader.training_run_id = self.id
        return reader

    def _fold(self, events: list[RecordedEvent]) -> None:
        for recorded in events:
            try:
                self._take(recorded)
            except (LineageError, ValueError) as error:
                raise LineageError(
                    f"{self.path} makes no sense at entry {recorded.position}: {error}"
                ) from error
            if recorded.position % _ENTRIES_A_MARK == 0:
                self._marks.append(_Mark(recorded.position, recorded.hash, recorded.end_byte))

    def _take(self, recorded: RecordedEvent) -> None:
        event = recorded.event
        place = Place(recorded.begin_byte, recorded.end_byte, recorded.check)
        match event.WhichOneof("event"):
            case "step":
                self.steps.add(event.step.step, event.step.attempt, place)
                self._happened(event.step.elapsed_ns)
            case "dataset":
                self.training_set.dataset = event.dataset
            case "documents":
                self.training_set.documents.add(event.documents, place)
            case "examples":
                self.training_set.examples.add(event.examples, place)
            case "attempt_started":
                self._begin(event.attempt_started)
            case "evaluation":
                self.evaluations.append(event.evaluation)
                self._happened(event.evaluation.elapsed_ns)
            case "checkpoint":
                event.checkpoint.ClearField("tensors")
                self.checkpoints.append(event.checkpoint)
                self._happened(event.checkpoint.elapsed_ns)
            case "attempt_finished":
                self._end(event.attempt_finished)

    def _begin(self, attempt: pb.AttemptStarted) -> None:
        self.attempts.append(attempt)
        self.steps.supersede_beyond(attempt.resumed_step)
        self.state = pb.TRAINING_STATE_RUNNING
        self._attempt_start_ns = attempt.start_time.ToNanoseconds()
        self._happened(0)

    def _end(self, ending: pb.AttemptFinished) -> None:
        self.endings.append(ending)
        if ending.state != pb.TRAINING_STATE_UNSPECIFIED:
            self.state = ending.state
        self.last_time_ns = max(self.last_time_ns, ending.end_time.ToNanoseconds())

    def _happened(self, elapsed_ns: int) -> None:
        self.last_time_ns = max(self.last_time_ns, self._attempt_start_ns + elapsed_ns)
