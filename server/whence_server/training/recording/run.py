"""A training run while it is recorded, in the process that writes: rank 0."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from whence.v1.training_pb2 import (
    AttemptFinished,
    AttemptStarted,
    Checkpoint,
    Evaluation,
    RankExamples,
    RecordingGap,
    TrainingEvent,
    TrainingState,
    TrainingStep,
)
from whence_server.domain.errors import LineageError
from whence_server.engine.digests import digest_weights
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.writer import RecordWriter
from whence_server.training.recording import saves, snapshots
from whence_server.training.recording.adapters import own_state
from whence_server.training.recording.norms import Norms
from whence_server.training.recording.ranks import RankStep
from whence_server.training.recording.setup import now

_log = logging.getLogger(__name__)


class RecordedRun:
    """Appends what happens to a run's record.

    Args:
        writer: the record; has the run's start and its dataset in it.
        attempt: what begins now.
        tokens_seen: in the steps that count so far.
        checkpoints: the step of each checkpoint that counts so far, by its weights' digest.
    """

    def __init__(
        self,
        writer: RecordWriter,
        attempt: AttemptStarted,
        tokens_seen: int = 0,
        checkpoints: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.path = writer.path
        self._writer: RecordWriter | None = writer
        self._attempt = attempt.attempt
        self._step = self._last_step = attempt.resumed_step
        self._tokens_seen = tokens_seen
        self._checkpoints = dict(checkpoints)
        self._is_trained = False
        self._trained_digest = ""
        self._copies: list[Path] = []
        self._later_copies: list[Path] = []
        self._saved: dict[Path, Checkpoint] = {}
        self._gaps: set[tuple[str, str]] = set()
        self.is_broken = False
        """Whether an event could not be written."""
        self._began_ns = self._step_ended_ns = time.monotonic_ns()
        self._append(TrainingEvent(attempt_started=attempt))

    @property
    def is_open(self) -> bool:
        """Whether the attempt goes on."""
        return self._writer is not None

    def step_done(
        self,
        step: int,
        ranks: Sequence[RankStep],
        *,
        epoch: float,
        learning_rate: float,
        grad_norm: float | None,
        norms: Norms | None,
        skipped: bool,
    ) -> None:
        """An optimizer step was made by these processes, in the order of their ranks."""
        ended_ns = time.monotonic_ns()
        num_tokens = sum(rank.num_tokens for rank in ranks)
        self._step = self._last_step = step
        self._tokens_seen += num_tokens
        event = TrainingStep(
            step=step,
            attempt=self._attempt,
            epoch=epoch,
            ranks=[
                RankExamples(
                    rank=number,
                    example_ids=rank.example_ids,
                    num_micro_batches=rank.num_micro_batches,
                )
                for number, rank in enumerate(ranks)
            ],
            num_tokens=num_tokens,
            num_tokens_seen=self._tokens_seen,
            loss=sum(rank.loss for rank in ranks) / len(ranks),
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            update_norms=norms.updates if norms else (),
            weight_norms=norms.weights if norms else (),
            elapsed_ns=ended_ns - self._began_ns,
            duration_ns=ended_ns - self._step_ended_ns,
            skipped=skipped,
        )
        self._append(TrainingEvent(step=event))
        self._step_ended_ns = ended_ns

    def evaluated(self, metrics: dict[str, Any]) -> None:
        """The model was measured; what is no number is left out."""
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
        event = Evaluation(
            step=self._step, attempt=self._attempt, metrics=numbers, elapsed_ns=self._elapsed_ns()
        )
        self._append(TrainingEvent(evaluation=event))
        # Neither this nor what follows is the next step's.
        self._step_ended_ns = time.monotonic_ns()

    def gap(self, subject: str, reason: str) -> None:
        """Something is not on record; each is said once, in the log too."""
        if (subject, reason) in self._gaps:
            return
        self._gaps.add((subject, reason))
        _log.warning("not on record: %s: %s", subject, reason)
        event = RecordingGap(
            step=self._step,
            attempt=self._attempt,
            subject=subject,
            reason=reason,
            elapsed_ns=self._elapsed_ns(),
        )
        self._append(TrainingEvent(gap=event))

    def saved(self, directory: Path, model: Any, written: Sequence[str] | None = None) -> None:
        """The model was saved to a directory, and all of that is on disk.

        Args:
            directory: where.
            model: the same weights in memory; or others, that came of merging an adapter.
            written: the files that this wrote, where that is known.

        Raises:
            LineageError: nothing was saved, it cannot be read, or the record cannot be written.
        """
        event = snapshots.checkpoint(directory, self.path, model, written)
        if self._is_trained:
            self._weights_are(event.merged_adapter_digest or event.weights_digest)
        self._checkpoints[event.weights_digest] = self._step
        event.step, event.attempt = self._step, self._attempt
        event.elapsed_ns = self._elapsed_ns()
        self._append(TrainingEvent(checkpoint=event))
        self._saved[directory] = event
        self._step_ended_ns = time.monotonic_ns()

    def saved_model(
        self, directory: Path, model: Any, written: Sequence[str] | None = None
    ) -> None:
        """The model was saved, to be used elsewhere: the record goes with it. As `saved`."""
        self.saved(directory, model, written)
        snapshots.copy_record(self.path, directory)
        if self.is_open:
            self._copies.append(directory)

    def saved_by_itself(self, directory: Path, model: Any, written: Sequence[str]) -> None:
        """The model was saved by its own method, and the record follows at the attempt's end.

        Until then the files may be on their way elsewhere, where a copy of the record is no help.
        """
        self.saved(directory, model, written)
        if self.is_open:
            self._later_copies.append(directory)

    def trained(self, model: Any) -> None:
        """The last step was made; what follows is of the weights that the model has now."""
        self._is_trained = True
        self._trained_digest = digest_weights(own_state(model))
        self._weights_are(self._trained_digest)

    def completed(self, model: Any) -> None:
        """The attempt went to its end; nothing more where it has ended already.

        Raises:
            LineageError: the record cannot be written.
        """
        if not self.is_open:
            return
        self._record_additions()
        self.finish(TrainingState.TRAINING_STATE_COMPLETED, model)
        # One that is there no more has been moved or thrown away since.
        kept = [it for it in self._copies if (it / RECORD_NAME).is_file()]
        for directory in kept + [it for it in self._later_copies if it.is_dir()]:
            try:
                snapshots.copy_record(self.path, directory)
            except LineageError as error:
                _log.warning("the record there ends before the training: %s", error)

    def failed(self, error: BaseException, model: Any) -> None:
        """An exception ended the attempt; nothing more where it has ended already.

        Where that cannot be recorded the log says so: the training's own error is the one to see.
        """
        if not self.is_open:
            return
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        state = (
            TrainingState.TRAINING_STATE_INTERRUPTED
            if interrupted
            else TrainingState.TRAINING_STATE_FAILED
        )
        try:
            self.finish(state, model, "" if interrupted else f"{type(error).__name__}: {error}")
        except Exception as unwritten:  # noqa: BLE001 - see above
            _log.warning("how the training ended is not on record: %s", unwritten)

    def finish(self, state: TrainingState.ValueType, model: Any, error: str = "") -> None:
        """The attempt has ended; later evaluations and saved models are recorded all the same."""
        self._is_trained = True
        try:
            self._finish(state, self._digest_at_end(model), error)
        finally:
            self._let_go()

    def unrecorded(self, reason: str) -> None:
        """Recording ends, and the training does not; the record says so where it can."""
        if not self.is_open:
            return
        try:
            self.gap("everything", reason)
            self._finish(TrainingState.TRAINING_STATE_UNRECORDED, "", reason)
        except Exception as unwritten:  # noqa: BLE001 - the log has the reason
            _log.warning("that recording stopped is not on record: %s", unwritten)
        finally:
            try:
                self._let_go()
            except LineageError as error:
                _log.warning("%s", error)

    def _let_go(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _digest_at_end(self, model: Any) -> str:
        """The weights' digest; an adapter that was merged since has none of its own any more."""
        if self._trained_digest and not saves.holds_its_adapters(model):
            return self._trained_digest
        return digest_weights(own_state(model))

    def _record_additions(self) -> None:
        """Record files that were put beside saved models since, as a tokenizer's often are."""
        for directory in dict.fromkeys(self._copies + self._later_copies):
            event = self._saved.get(directory)
            try:
                more = event and snapshots.with_additions(event, directory, self.path)
            except LineageError as error:
                _log.warning("what was added to %s is not on record: %s", directory, error)
                continue
            if more:
                more.elapsed_ns = self._elapsed_ns()
                self._append(TrainingEvent(checkpoint=more))

    def _finish(self, state: TrainingState.ValueType, digest: str, error: str) -> None:
        event = AttemptFinished(
            attempt=self._attempt,
            step=self._last_step,
            end_time=now(),
            state=state,
            error=error,
            weights_digest=digest,
        )
        self._weights_are(digest)
        self._append(TrainingEvent(attempt_finished=event))

    def _weights_are(self, digest: str) -> None:
        """After its last step a trainer may load an earlier checkpoint's: the best, say."""
        self._step = self._checkpoints.get(digest, self._last_step)

    def _elapsed_ns(self) -> int:
        return time.monotonic_ns() - self._began_ns

    def _append(self, event: TrainingEvent) -> None:
        self.is_broken = True
        if self._writer is not None:
            self._writer.append(event)
        else:
            writer = RecordWriter.resume(self.path)
            try:
                writer.append(event)
            finally:
                writer.close()
        self.is_broken = False
