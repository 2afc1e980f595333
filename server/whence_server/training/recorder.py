"""What `record` leaves on a trainer: it sees what the trainer does, and puts that on record.

The training's own bits stay as they are. Examples' ids travel inside the batch (`tagging`), and
are taken out of it right before the training step; all else is read, never written.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from whence.v1.training_pb2 import TrainingState
from whence_server.domain.errors import LineageError
from whence_server.training import opening
from whence_server.training.groups import parameter_groups
from whence_server.training.loader import tagged_loader
from whence_server.training.norms import NormMeter
from whence_server.training.ranks import StepSoFar, gathered, num_tokens
from whence_server.training.run import RecordedRun
from whence_server.training.tagging import IDS_KEY
from whence_server.training.wrapping import wrap


class Recorder(TrainerCallback):
    """A callback of the trainer's, and wraps around five of its methods.

    In a `with` block the attempt goes on until that ends.

    Attributes:
        run: what is on record in this process; None before the training and beside rank 0.
    """

    def __init__(self, trainer: Any, options: opening.Options, norm_stride: int) -> None:
        self._trainer = trainer
        self._options = options
        self._norm_stride = norm_stride
        self._meter: NormMeter | None = None
        self.run: RecordedRun | None = None
        self._is_held = False
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
            ("training_step", self._training_step),
            ("save_model", self._save_model),
        ):
            wrap(trainer, method, around)
        wrap(trainer.accelerator, "clip_grad_norm_", self._clip_grad_norm)

    def __enter__(self) -> Self:
        """Keeps the attempt from ending with the training."""
        self._is_held = True
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Records how the attempt ended.

        Raises:
            LineageError: the record cannot be written.
        """
        self._is_held = False
        if error is not None:
            self._fail(error)
        elif self.run is not None:
            self.run.completed(self._trainer.model)

    # Around the trainer's methods. Each gets the method that it stands for.

    def _train(self, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        resumed_from = args[0] if args else kwargs.get("resume_from_checkpoint")
        self._num_steps = 0
        if self.run is not None:
            self.run.completed(self._trainer.model)
        if self._writes:
            opening.require_place(self._options, resumes=bool(resumed_from))
        if resumed_from is True:
            resumed_from = get_last_checkpoint(self._trainer.args.output_dir)
        self._options = replace(
            self._options, resumed_from=Path(resumed_from) if resumed_from else None
        )
        try:
            return train(*args, **kwargs)
        except BaseException as error:
            self._fail(error)
            raise

    def _get_train_dataloader(self, get: Callable[[], Any]) -> Any:
        # Outside of a training the batches are somebody else's, who knows nothing of ids.
        trainer = self._trainer
        return tagged_loader(trainer, get) if trainer.is_in_train else get()

    def _training_step(
        self, step: Callable[..., torch.Tensor], model: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        ids = inputs.pop(IDS_KEY, None)
        if ids is None:
            raise LineageError(
                "a batch came without its examples' ids: it was not made by the trainer's own "
                "data loader and collator"
            )
        tokens = num_tokens(inputs, self._trainer.model)
        loss = step(model, inputs, *args, **kwargs)
        self._step.add_pass(ids, tokens, loss)
        return loss

    def _save_model(
        self, save: Callable[..., None], output_dir: Any = None, _internal_call: bool = False
    ) -> None:
        save(output_dir, _internal_call=_internal_call)
        # A checkpoint is not whole yet: see on_save.
        if not _internal_call and self.run is not None:
            self.saved_model(Path(output_dir or self._trainer.args.output_dir))

    def _clip_grad_norm(self, clip: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._step.grad_norm = clip(*args, **kwargs)
        return self._step.grad_norm

    def saved_model(self, directory: Path) -> None:
        """Puts a model on record that was saved to a directory, and the record beside it.

        Raises:
            LineageError: it cannot be read, or the record cannot be written.
        """
        if self.run is not None:
            self.run.saved_model(directory, self._trainer.model)

    # The trainer's events.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights are as the first step finds them."""
        del args, control, kwargs
        if state.is_hyper_param_search:
            raise LineageError("a hyperparameter search cannot be recorded: it is many runs")
        self._step = StepSoFar()
        if self._num_steps:
            raise LineageError(
                f"the trainer begins once more, with a smaller batch, after {self._num_steps} "
                "steps, whose effect would stay in the weights: that cannot be recorded. Train in "
                f"another directory with the batch size that it would take now, "
                f"{self._trainer._train_batch_size}"  # noqa: SLF001 - nowhere else
            )
        if not self._writes:
            return
        if self.run is not None and self.run.is_open:
            # The trainer tries again, with a smaller batch.
            failed = TrainingState.TRAINING_STATE_FAILED
            self.run.finish(failed, self._trainer.model, "begun once more")
            self._options = self._options.restarted()
        groups = parameter_groups(self._trainer.model)
        self.run = opening.begin(self._trainer, groups, self._options)
        # It is the run's now, which closes it: a later attempt opens the record itself.
        self._options = replace(self._options, writer=None)
        if self._norm_stride:
            self._meter = NormMeter(self._trainer.model, groups, self._norm_stride)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The gradient is there, and the weights are still those before the step."""
        del args, control, kwargs
        if self._meter is not None:
            self._meter.before_step(state.global_step + 1)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights are updated, and the learning rate is still that of this step."""
        del args, state, control, kwargs
        self._step.learning_rate = float(self._trainer.optimizer.param_groups[0]["lr"])

    def _step_made(self, args: Any, state: Any) -> None:
        """The step counts."""
        self._num_steps += 1
        made, self._step = self._step, StepSoFar()
        ranks = gathered(made.of_this_rank(), args)
        if self.run is not None:
            self.run.step_done(
                state.global_step,
                ranks,
                epoch=state.epoch,
                learning_rate=made.learning_rate,
                grad_norm=None if made.grad_norm is None else float(made.grad_norm),
                norms=self._meter.after_step(state.global_step) if self._meter else None,
                skipped=bool(self._trainer.accelerator.optimizer_step_was_skipped),
            )

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The model was measured."""
        del args, state, control
        if self.run is not None:
            self.run.evaluated(kwargs.get("metrics") or {})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint was saved, by this process."""
        del control, kwargs
        # Each process saves its own random state.
        self._trainer.accelerator.wait_for_everyone()
        if self.run is not None:
            directory = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self.run.saved(directory, self._trainer.model)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The training went to its end."""
        del args, state, control, kwargs
        self._meter = None
        if self.run is None:
            return
        if self._is_held:
            self.run.trained(self._trainer.model)
        else:
            self.run.completed(self._trainer.model)

    @property
    def _writes(self) -> bool:
        return bool(self._trainer.is_world_process_zero())

    def _fail(self, error: BaseException) -> None:
        if self.run is not None:
            self.run.failed(error, self._trainer.model)


class _StepEnd(TrainerCallback):
    """Hands on the end of a step, from the place that it has among a trainer's callbacks."""

    def __init__(self, then: Callable[[Any, Any], None]) -> None:
        self._then = then

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step counts."""
        del control, kwargs
        self._then(args, state)
