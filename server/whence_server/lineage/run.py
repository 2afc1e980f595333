"""A training run folded from its record, as far as that is written."""

import os
from collections.abc import Callable
from copy import copy
from pathlib import Path

from whence.v1 import training_pb2 as pb
from whence_server.domain.errors import LineageError
from whence_server.lineage.lookup import Place, event_at
from whence_server.lineage.marks import Marks
from whence_server.lineage.reader import RecordedEvent, RecordReader
from whence_server.lineage.steps import StepIndex
from whence_server.lineage.training_set import TrainingSet


def _never() -> bool:
    return False


class TrainingRun:
    """What a record says, without its steps, documents and examples: those are looked up in it.

    Whoever serves, resumes, verifies or explains a run has it from here. Not for several threads at
    once.

    Args:
        reader: has read the record's first entries.
        events: those.
        with_tensors: whether checkpoints keep the digests of their tensors.

    Attributes:
        path: the record's file.
        started: how the run was set up.
        training_set: what it reads.
        attempts: in order.
        endings: of those that ended in an orderly way.
        checkpoints: by ascending position, those of superseded steps included.
        evaluations: by ascending position.
        gaps: what is not on record, by ascending position.
        steps: where each lies, and which count.
        state: a TrainingState.
        last_time_ns: when the newest thing on record happened, in Unix nanoseconds.
    """

    def __init__(
        self, reader: RecordReader, events: list[RecordedEvent], *, with_tensors: bool = False
    ) -> None:
        self.path = reader.path
        self.started = events[0].event.started
        self.training_set = TrainingSet(reader.path)
        self.attempts: list[pb.AttemptStarted] = []
        self.endings: list[pb.AttemptFinished] = []
        self.checkpoints: list[pb.Checkpoint] = []
        self.evaluations: list[pb.Evaluation] = []
        self.gaps: list[pb.RecordingGap] = []
        self.steps = StepIndex()
        self.state = pb.TRAINING_STATE_RUNNING
        self.last_time_ns = self.started.start_time.ToNanoseconds()
        self._attempt_start_ns = self.last_time_ns
        self._marks = Marks()
        self._superseded: set[int] = set()
        self._with_tensors = with_tensors
        self._reader = reader
        self._fold(events)

    @classmethod
    def open(
        cls, path: Path, stopped: Callable[[], bool] = _never, *, with_tensors: bool = False
    ) -> "TrainingRun | None":
        """Fold a record; None where not even its first entry is whole yet.

        Args:
            path: the record's file.
            stopped: asked now and then whether to leave it at that.
            with_tensors: whether checkpoints keep the digests of their tensors.

        Raises:
            LineageError: it cannot be read, or is not intact.
        """
        reader = RecordReader(path)
        events = reader.read()
        if not events:
            return None
        run = cls(reader, events, with_tensors=with_tensors)
        run.refresh(stopped)
        return run

    def refresh(self, stopped: Callable[[], bool] = _never) -> None:
        """Fold what has been recorded since.

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

    def tokens_seen_after(self, step: int) -> int:
        """Tokens of the counting steps up to one of them; 0 where that is not on record.

        Raises:
            LineageError: the record is not the one that was read before.
        """
        ref = self.steps.at(step)
        return 0 if ref is None else event_at(self.path, ref.place).step.num_tokens_seen

    def newest_step(self) -> pb.TrainingStep | None:
        """The newest step that counts.

        Raises:
            LineageError: the record is not the one that was read before.
        """
        ref = self.steps.newest
        return None if ref is None else event_at(self.path, ref.place).step

    def counting_checkpoints(self) -> list[pb.Checkpoint]:
        """Those whose steps count, in order."""
        return [c for i, c in enumerate(self.checkpoints) if i not in self._superseded]

    def is_superseded(self, checkpoint: pb.Checkpoint) -> bool:
        """Whether the step of one of `checkpoints` was discarded later."""
        return any(self.checkpoints[index] is checkpoint for index in self._superseded)

    def directory_of(self, checkpoint: pb.Checkpoint) -> Path:
        """Where a checkpoint was written, seen from where the record lies now."""
        return self.path.parent / os.fsdecode(checkpoint.path_bytes or checkpoint.path)

    def num_bytes_beyond(self) -> int:
        """Bytes of the file beyond what was folded: what is torn, or newer.

        Raises:
            LineageError: the file is gone.
        """
        try:
            return self.path.stat().st_size - self._reader.end_byte
        except OSError as error:
            raise LineageError(f"{self.path} cannot be read: {error.strerror}") from error

    def reader_after(self, position: int) -> RecordReader:
        """A reader of its own, which has read up to some entry at or before this one.

        Args:
            position: at most `num_entries`.
        """
        if position < self.num_entries:
            return self._marks.reader_before(position, self.path, self.id)
        return copy(self._reader)

    def _fold(self, events: list[RecordedEvent]) -> None:
        for recorded in events:
            try:
                self._take(recorded)
            except (LineageError, ValueError) as error:
                raise LineageError(
                    f"{self.path} makes no sense at entry {recorded.position}: {error}"
                ) from error
            self._marks.pass_by(recorded)

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
                if not self._with_tensors:
                    event.checkpoint.ClearField("tensors")
                self.checkpoints.append(event.checkpoint)
                self._happened(event.checkpoint.elapsed_ns)
            case "gap":
                self.gaps.append(event.gap)
                self._happened(event.gap.elapsed_ns)
            case "attempt_finished":
                self._end(event.attempt_finished)

    def _begin(self, attempt: pb.AttemptStarted) -> None:
        self.attempts.append(attempt)
        resumed = attempt.resumed_step
        self.steps.supersede_beyond(resumed)
        self._superseded |= {i for i, c in enumerate(self.checkpoints) if c.step > resumed}
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
