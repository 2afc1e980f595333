"""Recorder that `record` attaches to a trainer.

The training's results do not change. Example ids are kept beside the batch (`tagging`, `loader`);
everything else is only read. Errors of the recording do not end the training (`keeping`).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from whence.v1.training_pb2 import TrainingState
from whence_server.training.recording import opening, saves
from whence_server.training.recording.groups import group_parameters
from whence_server.training.recording.keeping import Keeping
from whence_server.training.recording.loader import ExampleIds, find_read_dataset
from whence_server.training.recording.norms import NormMeter, Norms
from whence_server.training.recording.ranks import (
    StepSoFar,
    convert_to_float,
    count_tokens,
    gather_rank_steps,
)
from whence_server.training.recording.run import RecordedRun
from whence_server.training.recording.wrapping import wrap


class Recorder(TrainerCallback):
    """Callback of a trainer that also wraps some of its methods.

    In a `with` block the attempt lasts until the block ends, and every model that is saved in the
    block is recorded, by whatever method.
    """

    def __init__(self, trainer: Any, options: opening.Options, norm_stride: int) -> None:
        self._trainer = trainer
        self._options = options
        self._norm_stride = norm_stride
        self._meter: NormMeter | None = None
        self._keeping = Keeping(required=options.required)
        self._ids = ExampleIds()
        self._is_held = False
        self._is_saving = False
        self._block = ExitStack()
        self._num_steps = 0
        self._step = StepSoFar()
        trainer.whence_recorder = self
        # Steps are recorded first, before another callback can raise; everything else is recorded
        # last, after the other callbacks have changed weights and files.
        trainer.callback_handler.callbacks.insert(0, _StepEnd(self._record_step))
        trainer.add_callback(self)
        for method, around in (
            ("train", self._train),
            ("get_train_dataloader", self._get_train_dataloader),
            ("get_batch_samples", self._ids.fetch),
            ("training_step", self._run_training_step),
            ("save_model", self._save_model),
            ("_save_checkpoint", self._save_checkpoint),
        ):
            wrap(trainer, method, around)
        wrap(trainer.accelerator, "clip_grad_norm_", self._clip_grad_norm)

    @property
    def run(self) -> RecordedRun | None:
        """Recorded run; None before the training, and in processes other than rank 0."""
        return self._keeping.run

    def __enter__(self) -> Self:
        """Keep the attempt open after the training."""
        self._is_held = True
        self._block.enter_context(saves.watch_saves(self._record_own_save))
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Record the end of the attempt.

        Raises:
            LineageError: the record cannot be written, and recording is required.
        """
        self._block.close()
        self._is_held = False
        if error is not None:
            self._fail(error)
        else:
            self._keeping.record_or_stop(lambda run: run.complete(self._trainer.model))

    # Wrappers of the trainer's methods; each gets the original method.

    def _train(self, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        resumed_from = args[0] if args else kwargs.get("resume_from_checkpoint")
        self._num_steps = 0
        self._keeping.record_or_stop(lambda run: run.complete(self._trainer.model))
        if self._writes and self._keeping.is_on:
            opening.require_place(self._options, resumes=bool(resumed_from))
        if resumed_from is True:
            resumed_from = get_last_checkpoint(self._trainer.args.output_dir)
        self._options = replace(
            self._options, resumed_from=Path(resumed_from) if resumed_from else None
        )
        try:
            with self._ids.follow_passes():
                return train(*args, **kwargs)
        except BaseException as error:
            self._fail(error)
            raise

    def _get_train_dataloader(self, get: Callable[[], Any]) -> Any:
        loader = get()
        # Outside of a training, other code reads the batches, and does not expect ids.
        if not self._trainer.is_in_train:
            return loader
        try:
            self._read(loader)
        except Exception as error:  # noqa: BLE001 - a loader of any kind: it loads all the same
            self._ids.obstacle = f"its data loader cannot be followed: {error!r}"
        return loader

    def _read(self, loader: Any) -> None:
        dataset = self._trainer.train_dataset
        read = find_read_dataset(self._trainer, loader)
        self._options = replace(self._options, dataset=read)
        if self._options.documents is not None and read is not dataset:
            self._ids.obstacle = (
                f"the data loader reads a {type(read).__name__}, and the documents tell of the "
                f"examples of the trainer's {type(dataset).__name__}"
            )
            return
        self._ids.follow(loader)

    def _run_training_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        inputs = kwargs["inputs"] if "inputs" in kwargs else args[1]
        ids, tokens = self._ids.pop(inputs), count_tokens(inputs, self._trainer.model)
        loss = step(*args, **kwargs)
        self._step.add_pass(ids, tokens, loss)
        if ids is None:
            self._keeping.record_gap("example_ids", self._ids.explain_missing(inputs))
        return loss

    def _save_model(self, save: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        to = (args[0] if args else kwargs.get("output_dir")) or self._trainer.args.output_dir
        is_part = args[1] if len(args) > 1 else kwargs.get("_internal_call", False)
        directory = Path(to)
        before = saves.list_directory(directory)
        is_whole = not is_part and not self._is_saving
        with self.defer_records():
            save(*args, **kwargs)
        # A checkpoint is recorded in on_save, when it is whole.
        if is_whole:
            self._put_on_record(self._trainer.model, directory, before)

    def _save_checkpoint(self, save: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.defer_records():
            return save(*args, **kwargs)

    @contextmanager
    def defer_records(self) -> Iterator[None]:
        """Do not record saves in the block; the caller records them once they are complete."""
        before, self._is_saving = self._is_saving, True
        try:
            yield
        finally:
            self._is_saving = before

    def _record_own_save(self, model: Any, directory: Path, before: saves.Listing) -> None:
        """Record a model that was saved by its own method, if it comes from the training."""
        if self._is_saving or not saves.is_derived_from(model, self._trainer.model):
            return
        written = saves.list_directory(directory).list_written_since(before)
        self._keeping.record_part(
            "checkpoint", lambda run: run.record_own_save(directory, model, written)
        )

    def _clip_grad_norm(self, clip: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._step.grad_norm = clip(*args, **kwargs)
        return self._step.grad_norm

    def record_saved_model(self, directory: Path) -> None:
        """Record that the model was saved to a directory, and copy the record there.

        Raises:
            LineageError: recording is required, and the model cannot be read or recorded.
        """
        self._put_on_record(self._trainer.model, directory, None)

    def _put_on_record(self, model: Any, directory: Path, before: saves.Listing | None) -> None:
        written = (
            None if before is None else saves.list_directory(directory).list_written_since(before)
        )
        self._keeping.record_part(
            "checkpoint", lambda run: run.record_saved_model(directory, model, written)
        )

    # The trainer's events.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the record, with the weights before the first step."""
        del args, control, kwargs
        self._step = StepSoFar()
        if not self._may_begin(state) or not self._writes or not self._keeping.is_on:
            return
        if self.run is not None and self.run.is_open:
            # The trainer begins again with a smaller batch.
            failed = TrainingState.TRAINING_STATE_FAILED
            self.run.finish(failed, self._trainer.model, "begun once more")
            self._options = self._options.copy_for_restart()
        groups = group_parameters(self._trainer.model)
        self._keeping.begin(lambda: opening.begin(self._trainer, groups, self._options))
        # The run owns and closes the writer now; a later attempt opens the record itself.
        self._options = replace(self._options, writer=None)
        if self._norm_stride and self.run is not None:
            self._meter = self._keeping.record_part(
                "norms", lambda _: NormMeter(self._trainer.model, groups, self._norm_stride)
            )

    def _may_begin(self, state: Any) -> bool:
        if state.is_hyper_param_search:
            self._keeping.stop(
                "a hyperparameter search cannot be recorded, as it has many runs: record each one"
            )
        elif self._num_steps:
            self._keeping.stop(
                f"the trainer begins once more, with a smaller batch, after {self._num_steps} "
                "steps, whose effect stays in the weights: this cannot be recorded. Train in "
                "another directory with the smaller batch size, "
                f"{self._trainer._train_batch_size}"  # noqa: SLF001 - nowhere else
            )
            self._meter = None
        return self._keeping.is_on

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Copy the weights before the step, if its norms are measured."""
        del args, control, kwargs
        meter = self._meter
        if meter is not None:
            self._measure(lambda: meter.copy_weights(state.global_step + 1))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the learning rate before the scheduler changes it."""
        del args, state, control, kwargs
        groups = getattr(self._trainer.optimizer, "param_groups", None)
        self._step.learning_rate = convert_to_float(groups[0].get("lr")) if groups else float("nan")

    def _record_step(self, args: Any, state: Any) -> None:
        """Record a step that was made."""
        self._num_steps += 1
        made, self._step = self._step, StepSoFar()
        # Collective call: the other ranks do not know whether rank 0 still records.
        ranks = gather_rank_steps(made.finish(), args)
        meter = self._meter
        norms = (
            None if meter is None else self._measure(lambda: meter.measure_step(state.global_step))
        )
        self._keeping.record_or_stop(
            lambda run: run.record_step(
                state.global_step,
                ranks,
                epoch=convert_to_float(state.epoch),
                learning_rate=made.learning_rate,
                grad_norm=None if made.grad_norm is None else convert_to_float(made.grad_norm),
                norms=norms,
                skipped=bool(self._trainer.accelerator.optimizer_step_was_skipped),
            )
        )

    def _measure(self, measure: Callable[[], Norms | None]) -> Norms | None:
        """Measure norms; after an error no more are measured."""
        try:
            return measure()
        except Exception as error:  # noqa: BLE001 - see the module
            self._meter = None
            self._keeping.record_failure("norms", error)
            return None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record an evaluation."""
        del args, state, control
        metrics = kwargs.get("metrics") or {}
        self._keeping.record_part("evaluation", lambda run: run.record_evaluation(metrics))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record a checkpoint once every process has saved its part."""
        del control, kwargs
        # Each process saves its own random state.
        self._trainer.accelerator.wait_for_everyone()
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._keeping.record_part(
            "checkpoint", lambda run: run.record_checkpoint(directory, self._trainer.model)
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record that the training completed."""
        del args, state, control, kwargs
        self._meter = None
        model = self._trainer.model
        is_held = self._is_held
        self._keeping.record_or_stop(
            lambda run: run.mark_trained(model) if is_held else run.complete(model)
        )

    @property
    def _writes(self) -> bool:
        return bool(self._trainer.is_world_process_zero())

    def _fail(self, error: BaseException) -> None:
        if self.run is not None and self._keeping.is_on:
            self.run.fail(error, self._trainer.model)


class _StepEnd(TrainerCallback):
    """Callback that calls a function at the end of each step."""

    def __init__(self, then: Callable[[Any, Any], None]) -> None:
        self._then = then

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Call the function."""
        del control, kwargs
        self._then(args, state)
