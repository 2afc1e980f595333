"""State of a training run, computed from the events on record."""

import os
from collections.abc import Callable
from copy import copy
from pathlib import Path

from whence.v1 import training_pb2 as pb
from whence_server.domain.errors import LineageError
from whence_server.lineage.lookup import Place, read_event_at
from whence_server.lineage.marks import Marks
from whence_server.lineage.reader import RecordedEvent, RecordReader
from whence_server.lineage.steps import StepIndex
from whence_server.lineage.training_set import TrainingSet


def _never_stops() -> bool:
    return False


class TrainingRun:
    """State of a training run; steps, documents and examples are read from the record on demand.

    Not thread-safe.

    Args:
        reader: a reader that has read the record's first entries.
        events: the entries that it has read.
        with_tensors: True if checkpoints keep the digests of their tensors.

    Attributes:
        path: the record's file.
        started: the event with the run's setup.
        training_set: documents and examples of the run.
        attempts: the attempts, in order.
        endings: the ends of attempts that were recorded, in order.
        checkpoints: by ascending position, including those of superseded steps.
        evaluations: evaluations, by ascending position.
        gaps: gaps in the record, by ascending position.
        steps: index of the steps.
        state: a TrainingState.
        last_time_ns: time of the newest event on record, in Unix nanoseconds.
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
        cls, path: Path, stopped: Callable[[], bool] = _never_stops, *, with_tensors: bool = False
    ) -> "TrainingRun | None":
        """Read a record; return None if its first entry is not whole yet.

        Args:
            path: the record's file.
            stopped: called between batches of entries; reading ends once it returns True.
            with_tensors: True if checkpoints keep the digests of their tensors.

        Raises:
            LineageError: the record cannot be read, or is not intact.
        """
        reader = RecordReader(path)
        events = reader.read()
        if not events:
            return None
        run = cls(reader, events, with_tensors=with_tensors)
        run.refresh(stopped)
        return run

    def refresh(self, stopped: Callable[[], bool] = _never_stops) -> None:
        """Read the entries that were appended since.

        Raises:
            LineageError: the record cannot be read, or is not intact.
        """
        while not stopped() and (events := self._reader.read()):
            self._fold(events)

    @property
    def id(self) -> str:
        """Id of the training run."""
        return self.started.training_run_id

    @property
    def num_entries(self) -> int:
        """Number of entries that were read from the record."""
        return self._reader.position

    @property
    def head(self) -> str:
        """The chain's hash after the last entry that was read, as 64 hex digits."""
        return self._reader.head.hex()

    @property
    def ended(self) -> bool:
        """True if the end of the last attempt is on record."""
        return self.state != pb.TRAINING_STATE_RUNNING

    def read_num_tokens_seen(self, step: int) -> int:
        """Read the number of tokens seen up to a step that counts; 0 if the step is not on record.

        Raises:
            LineageError: the record is not the one that was read before.
        """
        ref = self.steps.find(step)
        return 0 if ref is None else read_event_at(self.path, ref.place).step.num_tokens_seen

    def read_newest_step(self) -> pb.TrainingStep | None:
        """Read the newest step that counts; None if there is none.

        Raises:
            LineageError: the record is not the one that was read before.
        """
        ref = self.steps.newest
        return None if ref is None else read_event_at(self.path, ref.place).step

    def list_counting_checkpoints(self) -> list[pb.Checkpoint]:
        """Return the checkpoints of steps that count, in order."""
        return [c for i, c in enumerate(self.checkpoints) if i not in self._superseded]

    def is_superseded(self, checkpoint: pb.Checkpoint) -> bool:
        """Return whether the step of one of `checkpoints` was superseded by a later attempt."""
        return any(self.checkpoints[index] is checkpoint for index in self._superseded)

    def resolve_directory(self, checkpoint: pb.Checkpoint) -> Path:
        """Return a checkpoint's directory, resolved against the record's current directory."""
        return self.path.parent / os.fsdecode(checkpoint.path_bytes or checkpoint.path)

    def count_bytes_beyond(self) -> int:
        """Return the number of bytes after the last entry that was read.

        Raises:
            LineageError: the file is missing.
        """
        try:
            return self.path.stat().st_size - self._reader.end_byte
        except OSError as error:
            raise LineageError(f"{self.path} cannot be read: {error.strerror}") from error

    def create_reader_after(self, position: int) -> RecordReader:
        """Return an independent reader that has read up to some entry at or before a position.

        Args:
            position: at most `num_entries`.
        """
        if position < self.num_entries:
            return self._marks.create_reader_before(position, self.path, self.id)
        return copy(self._reader)

    def _fold(self, events: list[RecordedEvent]) -> None:
        for recorded in events:
            try:
                self._apply(recorded)
            except (LineageError, ValueError) as error:
                raise LineageError(
                    f"{self.path} is inconsistent at entry {recorded.position}: {error}"
                ) from error
            self._marks.add(recorded)

    def _apply(self, recorded: RecordedEvent) -> None:
        event = recorded.event
        place = Place(recorded.begin_byte, recorded.end_byte, recorded.check)
        match event.WhichOneof("event"):
            case "step":
                self.steps.add(event.step.step, event.step.attempt, place)
                self._update_last_time(event.step.elapsed_ns)
            case "dataset":
                self.training_set.dataset = event.dataset
            case "documents":
                self.training_set.documents.add(event.documents, place)
            case "examples":
                self.training_set.examples.add(event.examples, place)
            case "attempt_started":
                self._begin_attempt(event.attempt_started)
            case "evaluation":
                self.evaluations.append(event.evaluation)
                self._update_last_time(event.evaluation.elapsed_ns)
            case "checkpoint":
                if not self._with_tensors:
                    event.checkpoint.ClearField("tensors")
                self.checkpoints.append(event.checkpoint)
                self._update_last_time(event.checkpoint.elapsed_ns)
            case "gap":
                self.gaps.append(event.gap)
                self._update_last_time(event.gap.elapsed_ns)
            case "attempt_finished":
                self._end_attempt(event.attempt_finished)

    def _begin_attempt(self, attempt: pb.AttemptStarted) -> None:
        self.attempts.append(attempt)
        resumed = attempt.resumed_step
        self.steps.supersede_beyond(resumed)
        self._superseded |= {i for i, c in enumerate(self.checkpoints) if c.step > resumed}
        self.state = pb.TRAINING_STATE_RUNNING
        self._attempt_start_ns = attempt.start_time.ToNanoseconds()
        self._update_last_time(0)

    def _end_attempt(self, ending: pb.AttemptFinished) -> None:
        self.endings.append(ending)
        if ending.state != pb.TRAINING_STATE_UNSPECIFIED:
            self.state = ending.state
        self.last_time_ns = max(self.last_time_ns, ending.end_time.ToNanoseconds())

    def _update_last_time(self, elapsed_ns: int) -> None:
        self.last_time_ns = max(self.last_time_ns, self._attempt_start_ns + elapsed_ns)
