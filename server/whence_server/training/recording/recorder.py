"""What `record` leaves on a trainer: it sees what the trainer does, and puts that on record.

The training's own bits stay as they are. Examples' ids travel beside the batch (`tagging`,
`loader`), where nothing else sees them; all else is read, never written. What cannot be recorded
is said, and the training goes on (`keeping`).
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
from whence_server.training.recording.groups import parameter_groups
from whence_server.training.recording.keeping import Keeping
from whence_server.training.recording.loader import ExampleIds, read_by
from whence_server.training.recording.norms import NormMeter, Norms
from whence_server.training.recording.ranks import StepSoFar, gathered, num_tokens, number
from whence_server.training.recording.run import RecordedRun
from whence_server.training.recording.wrapping import wrap


class Recorder(TrainerCallback):
    """A callback of the trainer's, and wraps around some of its methods.

    In a `with` block the attempt goes on until that ends, and whatever is saved of the model there
    is recorded, by whichever method.
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
        # A step is on record before any other callback can raise. All else comes last, when the
        # others have done what they do to weights and files.
        trainer.callback_handler.callbacks.insert(0, _StepEnd(self._step_made))
        trainer.add_callback(self)
        for method, around in (
            ("train", self._train),
            ("get_train_dataloader", self._get_train_dataloader),
            ("get_batch_samples", self._ids.fetch),
            ("training_step", self._training_step),
            ("save_model", self._save_model),
            ("_save_checkpoint", self._save_checkpoint),
        ):
            wrap(trainer, method, around)
        wrap(trainer.accelerator, "clip_grad_norm_", self._clip_grad_norm)

    @property
    def run(self) -> RecordedRun | None:
        """What is on record in this process; None before the training and beside rank 0."""
        return self._keeping.run

    def __enter__(self) -> Self:
        """Keep the attempt from ending with the training."""
        self._is_held = True
        self._block.enter_context(saves.watched(self._saved_by_itself))
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Record how the attempt ended.

        Raises:
            LineageError: the record cannot be written, and has to be.
        """
        self._block.close()
        self._is_held = False
        if error is not None:
            self._fail(error)
        else:
            self._keeping.everything(lambda run: run.completed(self._trainer.model))

    # Around the trainer's methods. Each gets the method that it stands for.

    def _train(self, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        resumed_from = args[0] if args else kwargs.get("resume_from_checkpoint")
        self._num_steps = 0
        self._keeping.everything(lambda run: run.completed(self._trainer.model))
        if self._writes and self._keeping.is_on:
            opening.require_place(self._options, resumes=bool(resumed_from))
        if resumed_from is True:
            resumed_from = get_last_checkpoint(self._trainer.args.output_dir)
        self._options = replace(
            self._options, resumed_from=Path(resumed_from) if resumed_from else None
        )
        try:
            with self._ids.following():
                return train(*args, **kwargs)
        except BaseException as error:
            self._fail(error)
            raise

    def _get_train_dataloader(self, get: Callable[[], Any]) -> Any:
        loader = get()
        # Outside of a training the batches are somebody else's, who knows nothing of ids.
        if not self._trainer.is_in_train:
            return loader
        try:
            self._read(loader)
        except Exception as error:  # noqa: BLE001 - a loader of any kind: it loads all the same
            self._ids.obstacle = f"its data loader cannot be followed: {error!r}"
        return loader

    def _read(self, loader: Any) -> None:
        dataset = self._trainer.train_dataset
        read = read_by(self._trainer, loader)
        self._options = replace(self._options, dataset=read)
        if self._options.documents is not None and read is not dataset:
            self._ids.obstacle = (
                f"the data loader reads a {type(read).__name__}, and the documents tell of the "
                f"examples of the trainer's {type(dataset).__name__}"
            )
            return
        self._ids.follow(loader)

    def _training_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        inputs = kwargs["inputs"] if "inputs" in kwargs else args[1]
        ids, tokens = self._ids.of(inputs), num_tokens(inputs, self._trainer.model)
        loss = step(*args, **kwargs)
        self._step.add_pass(ids, tokens, loss)
        if ids is None:
            self._keeping.gap("example_ids", self._ids.why_none(inputs))
        return loss

    def _save_model(self, save: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        to = (args[0] if args else kwargs.get("output_dir")) or self._trainer.args.output_dir
        is_part = args[1] if len(args) > 1 else kwargs.get("_internal_call", False)
        directory = Path(to)
        before = saves.listing(directory)
        is_whole = not is_part and not self._is_saving
        with self.saving():
            save(*args, **kwargs)
        # A checkpoint is not whole yet: see on_save.
        if is_whole:
            self._put_on_record(self._trainer.model, directory, before)

    def _save_checkpoint(self, save: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.saving():
            return save(*args, **kwargs)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Leave what the model saves meanwhile to who saves it, and says so once it is whole."""
        before, self._is_saving = self._is_saving, True
        try:
            yield
        finally:
            self._is_saving = before

    def _saved_by_itself(self, model: Any, directory: Path, before: saves.Listing) -> None:
        """Put a model on record that was saved by its own method, where it is the training's."""
        if self._is_saving or not saves.comes_of(model, self._trainer.model):
            return
        written = saves.listing(directory).since(before)
        self._keeping.part("checkpoint", lambda run: run.saved_by_itself(directory, model, written))

    def _clip_grad_norm(self, clip: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._step.grad_norm = clip(*args, **kwargs)
        return self._step.grad_norm

    def saved_model(self, directory: Path) -> None:
        """Put a model on record that was saved to a directory, and the record beside it.

        Raises:
            LineageError: it cannot be read, or the record cannot be written, and has to be.
        """
        self._put_on_record(self._trainer.model, directory, None)

    def _put_on_record(self, model: Any, directory: Path, before: saves.Listing | None) -> None:
        written = None if before is None else saves.listing(directory).since(before)
        self._keeping.part("checkpoint", lambda run: run.saved_model(directory, model, written))

    # The trainer's events.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights are as the first step finds them."""
        del args, control, kwargs
        self._step = StepSoFar()
        if not self._may_begin(state) or not self._writes or not self._keeping.is_on:
            return
        if self.run is not None and self.run.is_open:
            # The trainer tries again, with a smaller batch.
            failed = TrainingState.TRAINING_STATE_FAILED
            self.run.finish(failed, self._trainer.model, "begun once more")
            self._options = self._options.restarted()
        groups = parameter_groups(self._trainer.model)
        self._keeping.begin(lambda: opening.begin(self._trainer, groups, self._options))
        # It is the run's now, which closes it: a later attempt opens the record itself.
        self._options = replace(self._options, writer=None)
        if self._norm_stride and self.run is not None:
            self._meter = self._keeping.part(
                "norms", lambda _: NormMeter(self._trainer.model, groups, self._norm_stride)
            )

    def _may_begin(self, state: Any) -> bool:
        if state.is_hyper_param_search:
            self._keeping.stop("a hyperparameter search cannot be recorded: it is many runs")
        elif self._num_steps:
            self._keeping.stop(
                f"the trainer begins once more, with a smaller batch, after {self._num_steps} "
                "steps, whose effect stays in the weights: that cannot be recorded. Train in "
                "another directory with the batch size that it takes now, "
                f"{self._trainer._train_batch_size}"  # noqa: SLF001 - nowhere else
            )
            self._meter = None
        return self._keeping.is_on

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The gradient is there, and the weights are still those before the step."""
        del args, control, kwargs
        meter = self._meter
        if meter is not None:
            self._measured(lambda: meter.before_step(state.global_step + 1))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights are updated, and the learning rate is still that of this step."""
        del args, state, control, kwargs
        groups = getattr(self._trainer.optimizer, "param_groups", None)
        self._step.learning_rate = number(groups[0].get("lr")) if groups else float("nan")

    def _step_made(self, args: Any, state: Any) -> None:
        """The step counts."""
        self._num_steps += 1
        made, self._step = self._step, StepSoFar()
        # Together with the other processes, which do not know whether this one still records.
        ranks = gathered(made.of_this_rank(), args)
        meter = self._meter
        norms = (
            None if meter is None else self._measured(lambda: meter.after_step(state.global_step))
        )
        self._keeping.everything(
            lambda run: run.step_done(
                state.global_step,
                ranks,
                epoch=number(state.epoch),
                learning_rate=made.learning_rate,
                grad_norm=None if made.grad_norm is None else number(made.grad_norm),
                norms=norms,
                skipped=bool(self._trainer.accelerator.optimizer_step_was_skipped),
            )
        )

    def _measured(self, measure: Callable[[], Norms | None]) -> Norms | None:
        """Measure norms, and no more of them once that has failed."""
        try:
            return measure()
        except Exception as error:  # noqa: BLE001 - see the module
            self._meter = None
            self._keeping.failed("norms", error)
            return None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The model was measured."""
        del args, state, control
        metrics = kwargs.get("metrics") or {}
        self._keeping.part("evaluation", lambda run: run.evaluated(metrics))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint was saved, by this process."""
        del control, kwargs
        # Each process saves its own random state.
        self._trainer.accelerator.wait_for_everyone()
        directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._keeping.part("checkpoint", lambda run: run.saved(directory, self._trainer.model))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The training went to its end."""
        del args, state, control, kwargs
        self._meter = None
        model = self._trainer.model
        is_held = self._is_held
        self._keeping.everything(
            lambda run: run.trained(model) if is_held else run.completed(model)
        )

    @property
    def _writes(self) -> bool:
        return bool(self._trainer.is_world_process_zero())

    def _fail(self, error: BaseException) -> None:
        if self.run is not None and self._keeping.is_on:
            self.run.failed(error, self._trainer.model)


class _StepEnd(TrainerCallback):
    """Hands on the end of a step, from the place that it has among a trainer's callbacks."""

    def __init__(self, then: Callable[[Any, Any], None]) -> None:
        self._then = then

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step counts."""
        del control, kwargs
        self._then(args, state)
