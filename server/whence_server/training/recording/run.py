"""Recording of one attempt of a training run, in the process that writes (rank 0)."""

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
from whence_server.engines.transformers.digests import digest_weights
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.writer import RecordWriter
from whence_server.training.recording import saves, snapshots
from whence_server.training.recording.adapters import get_trained_state
from whence_server.training.recording.norms import Norms
from whence_server.training.recording.ranks import RankStep
from whence_server.training.recording.setup import get_timestamp

_log = logging.getLogger(__name__)


class RecordedRun:
    """Attempt of a training run whose events are appended to the record.

    Args:
        writer: writer of the record, which has the run's start and its dataset.
        attempt: the attempt that begins.
        tokens_seen: number of tokens of the steps that count so far.
        checkpoints: step of each checkpoint that counts so far, by its weights digest.
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
        """True if an event could not be written."""
        self._began_ns = self._step_ended_ns = time.monotonic_ns()
        self._append(TrainingEvent(attempt_started=attempt))

    @property
    def is_open(self) -> bool:
        """True until the attempt has ended."""
        return self._writer is not None

    def record_step(
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
        """Record an optimizer step, with the work of the processes in the order of their ranks."""
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

    def record_evaluation(self, metrics: dict[str, Any]) -> None:
        """Record an evaluation; metrics that are not numbers are left out."""
        numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
        event = Evaluation(
            step=self._step,
            attempt=self._attempt,
            metrics=numbers,
            elapsed_ns=self._measure_elapsed_ns(),
        )
        self._append(TrainingEvent(evaluation=event))
        # The time of the evaluation is not part of the next step.
        self._step_ended_ns = time.monotonic_ns()

    def record_gap(self, subject: str, reason: str) -> None:
        """Record that something is missing; each gap is recorded and logged once."""
        if (subject, reason) in self._gaps:
            return
        self._gaps.add((subject, reason))
        _log.warning("not on record: %s: %s", subject, reason)
        event = RecordingGap(
            step=self._step,
            attempt=self._attempt,
            subject=subject,
            reason=reason,
            elapsed_ns=self._measure_elapsed_ns(),
        )
        self._append(TrainingEvent(gap=event))

    def record_checkpoint(
        self, directory: Path, model: Any, written: Sequence[str] | None = None
    ) -> None:
        """Record that the model was saved to a directory, after all of it is on disk.

        Args:
            directory: directory of the saved model.
            model: the model in memory, or the model that merging its adapter has made.
            written: names of the files that saving wrote; None if they are not known.

        Raises:
            LineageError: no file was saved, one cannot be read, or the record cannot be written.
        """
        event = snapshots.make_checkpoint(directory, self.path, model, written)
        if self._is_trained:
            self._set_step_of(event.merged_adapter_digest or event.weights_digest)
        self._checkpoints[event.weights_digest] = self._step
        event.step, event.attempt = self._step, self._attempt
        event.elapsed_ns = self._measure_elapsed_ns()
        self._append(TrainingEvent(checkpoint=event))
        self._saved[directory] = event
        self._step_ended_ns = time.monotonic_ns()

    def record_saved_model(
        self, directory: Path, model: Any, written: Sequence[str] | None = None
    ) -> None:
        """Record a saved model like `record_checkpoint`, and copy the record to its directory."""
        self.record_checkpoint(directory, model, written)
        snapshots.copy_record(self.path, directory)
        if self.is_open:
            self._copies.append(directory)

    def record_own_save(self, directory: Path, model: Any, written: Sequence[str]) -> None:
        """Record a model saved by its own method; the record is copied there at the attempt's end.

        Before that the directory may be temporary.
        """
        self.record_checkpoint(directory, model, written)
        if self.is_open:
            self._later_copies.append(directory)

    def mark_trained(self, model: Any) -> None:
        """Note that the last step was made; later events concern the model's weights now."""
        self._is_trained = True
        self._trained_digest = digest_weights(get_trained_state(model))
        self._set_step_of(self._trained_digest)

    def complete(self, model: Any) -> None:
        """Record that the attempt completed; does nothing if it has ended already.

        Raises:
            LineageError: the record cannot be written.
        """
        if not self.is_open:
            return
        self._record_additions()
        self.finish(TrainingState.TRAINING_STATE_COMPLETED, model)
        # A copy that is missing was moved or deleted since.
        kept = [it for it in self._copies if (it / RECORD_NAME).is_file()]
        for directory in kept + [it for it in self._later_copies if it.is_dir()]:
            try:
                snapshots.copy_record(self.path, directory)
            except LineageError as error:
                _log.warning("a copy of the record ends before the training does: %s", error)

    def fail(self, error: BaseException, model: Any) -> None:
        """Record that an exception ended the attempt; does nothing if it has ended already.

        An error of the recording is only logged, so that the training's own error is raised.
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
        """Record the attempt's end; later evaluations and saved models are still recorded."""
        self._is_trained = True
        try:
            self._finish(state, self._compute_final_digest(model), error)
        finally:
            self._let_go()

    def stop(self, reason: str) -> None:
        """Record, if possible, that recording ends before the training."""
        if not self.is_open:
            return
        try:
            self.record_gap("everything", reason)
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

    def _compute_final_digest(self, model: Any) -> str:
        """Return the weights digest; after merging an adapter, the one at the end of training."""
        if self._trained_digest and not saves.holds_its_adapters(model):
            return self._trained_digest
        return digest_weights(get_trained_state(model))

    def _record_additions(self) -> None:
        """Record files, for example of a tokenizer, that were added to saved models later."""
        for directory in dict.fromkeys(self._copies + self._later_copies):
            event = self._saved.get(directory)
            try:
                more = event and snapshots.add_new_files(event, directory, self.path)
            except LineageError as error:
                _log.warning("files that were added to %s are not on record: %s", directory, error)
                continue
            if more:
                more.elapsed_ns = self._measure_elapsed_ns()
                self._append(TrainingEvent(checkpoint=more))

    def _finish(self, state: TrainingState.ValueType, digest: str, error: str) -> None:
        event = AttemptFinished(
            attempt=self._attempt,
            step=self._last_step,
            end_time=get_timestamp(),
            state=state,
            error=error,
            weights_digest=digest,
        )
        self._set_step_of(digest)
        self._append(TrainingEvent(attempt_finished=event))

    def _set_step_of(self, digest: str) -> None:
        """Set the step of these weights: a trainer may load the best checkpoint at its end."""
        self._step = self._checkpoints.get(digest, self._last_step)

    def _measure_elapsed_ns(self) -> int:
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
