"""Records what any Hugging Face `Trainer` does, from one line in its script.

    from whence_server.training import record

    record(trainer)
    trainer.train()

As a context manager it puts the attempt's end on record where the block ends, and not where the
training does: after what is saved or measured in between.

The training's own bits stay as they are. Examples' ids travel inside the batch (`tagging`), and
are taken out of it right before the training step; all else is read, never written.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from whence.v1.training_pb2 import ParentModel, TrainingState
from whence_server.domain.errors import LineageError
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.writer import RecordWriter
from whence_server.training import opening
from whence_server.training.documented import DocumentedExamples
from whence_server.training.groups import parameter_groups
from whence_server.training.loader import tagged_loader
from whence_server.training.norms import NormMeter
from whence_server.training.ranks import RankStep, gathered, num_tokens
from whence_server.training.run import RecordedRun
from whence_server.training.snapshots import copy_record
from whence_server.training.tagging import IDS_KEY
from whence_server.training.wrapping import wrap

_log = logging.getLogger(__name__)


def record(
    trainer: Trainer,
    *,
    directory: Path | str | None = None,
    name: str = "",
    norm_stride: int = 1,
    documents: DocumentedExamples | None = None,
    keep_checkpoints: bool = True,
    parent: ParentModel | None = None,
    recipe_json: str = "",
    restart: bool = False,
    writer: RecordWriter | None = None,
) -> "Recorder":
    """Records a trainer's training from its beginning on; call it before `trainer.train()`.

    Where the training goes on from a checkpoint (`resume_from_checkpoint`), its record goes on
    too. Several processes each have to call this, as they each call everything; rank 0 writes.

    Args:
        trainer: what trains. FSDP, DeepSpeed and hyperparameter search are refused.
        directory: where `lineage.binpb` is written; the trainer's output directory by default.
        name: for people; the directory's name by default.
        norm_stride: update and weight norms are measured in one step of so many; 0 is never.
            They need a copy of the weights in memory.
        documents: where the dataset's examples were cut from, if that is known.
        keep_checkpoints: lifts the trainer's `save_total_limit`, so that every checkpoint on
            record stays on disk. Without it the record names checkpoints that are gone.
        parent: the model that the training goes on from (see `parent_model`). Left out, it is the
            directory that the model was loaded from, if its weights are still the model's.
        recipe_json: from which the trainer could be built again.
        restart: goes on with the record that is there although the training begins at step 0
            again, as one that was killed before its first checkpoint has to. The weights have to
            be those that it began at.
        writer: the record to go on with, where it was opened before to keep others from it.

    Raises:
        LineageError: the trainer cannot be recorded, or an argument is wrong.
    """
    if not isinstance(trainer, Trainer):
        raise LineageError(f"a transformers.Trainer is needed, not a {type(trainer).__name__}")
    if hasattr(trainer, "whence_recorder"):
        raise LineageError("this trainer is being recorded already")
    _require_whole_weights(trainer)
    if norm_stride < 0:
        raise LineageError(f"norm_stride {norm_stride}: expected a number of steps, or 0 for never")
    if documents is not None:
        _require_examples(documents, trainer.train_dataset)
    where = Path(directory if directory is not None else trainer.args.output_dir).absolute()
    recorder = Recorder(
        trainer,
        opening.Options(
            path=where / RECORD_NAME,
            name=name or where.name,
            documents=documents,
            parent=parent,
            recipe_json=recipe_json,
            restart=restart,
            writer=writer,
        ),
        norm_stride,
    )
    if keep_checkpoints and trainer.args.save_total_limit is not None:
        _log.warning(
            "save_total_limit=%d is lifted: checkpoints on record are kept. "
            "record(..., keep_checkpoints=False) lets them go",
            trainer.args.save_total_limit,
        )
        trainer.args.save_total_limit = None
    return recorder


def _require_examples(documents: DocumentedExamples, dataset: Any) -> None:
    if not hasattr(dataset, "__len__"):
        raise LineageError(
            f"documents: they tell of {len(documents.pieces)} examples by index; the trainer's "
            f"dataset is a {type(dataset).__name__} without a length"
        )
    if len(documents.pieces) != len(dataset):
        raise LineageError(
            f"documents: they tell of {len(documents.pieces)} examples; the trainer's dataset has "
            f"{len(dataset)}"
        )


def _require_whole_weights(trainer: Any) -> None:
    """Refuses what keeps only a part of the weights in each process."""
    for flag, what in (
        ("is_fsdp_enabled", "FSDP"),
        ("is_deepspeed_enabled", "DeepSpeed"),
        ("is_distributed_loading_by_transformers", "a model that is sharded at load time"),
    ):
        if getattr(trainer, flag, False):
            raise LineageError(f"{what} cannot be recorded yet: every process needs all weights")


class Recorder(TrainerCallback):
    """What `record` leaves on a trainer: a callback, and wraps around five of its methods.

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
        self._copies: list[Path] = []
        self._grad_norm: Any = None
        self._num_steps = 0
        self._begin_step()
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
        else:
            self._complete()

    # Around the trainer's methods. Each gets the method that it stands for.

    def _train(self, train: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        resumed_from = args[0] if args else kwargs.get("resume_from_checkpoint")
        self._num_steps = 0
        self._complete()
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
        self._ids.append(ids)
        self._num_tokens.append(num_tokens(inputs, self._trainer.model))
        loss = step(model, inputs, *args, **kwargs)
        self._losses.append(loss)
        return loss

    def _save_model(
        self, save: Callable[..., None], output_dir: Any = None, _internal_call: bool = False
    ) -> None:
        save(output_dir, _internal_call=_internal_call)
        # A checkpoint is not whole yet: see on_save.
        if not _internal_call and self.run is not None:
            self.saved_model(Path(output_dir or self._trainer.args.output_dir))

    def _clip_grad_norm(self, clip: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._grad_norm = clip(*args, **kwargs)
        return self._grad_norm

    def saved_model(self, directory: Path) -> None:
        """Puts a model on record that was saved to a directory, and the record beside it.

        Raises:
            LineageError: it cannot be read, or the record cannot be written.
        """
        if self.run is not None:
            self.run.saved(directory, self._trainer.model)
            copy_record(self.run.path, directory)
            if self.run.is_open:
                self._copies.append(directory)

    # The trainer's events.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights are as the first step finds them."""
        del args, control, kwargs
        if state.is_hyper_param_search:
            raise LineageError("a hyperparameter search cannot be recorded: it is many runs")
        self._begin_step()
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
            self.run.finish(
                TrainingState.TRAINING_STATE_FAILED, self._trainer.model, "begun once more"
            )
            self._options = self._options.restarted()
        groups = parameter_groups(self._trainer.model)
        self.run = opening.begin(self._trainer, groups, self._options)
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
        self._learning_rate = float(self._trainer.optimizer.param_groups[0]["lr"])

    def _step_made(self, args: Any, state: Any) -> None:
        """The step counts."""
        self._num_steps += 1
        mine = RankStep(
            example_ids=[number for ids in self._ids for number in ids.tolist()],
            num_micro_batches=len(self._ids),
            num_tokens=int(sum(self._num_tokens)),
            loss=float(sum(loss.item() for loss in self._losses)),
        )
        ranks = gathered(mine, args)
        if self.run is not None:
            self.run.step_done(
                state.global_step,
                ranks,
                epoch=state.epoch,
                learning_rate=self._learning_rate,
                grad_norm=None if self._grad_norm is None else float(self._grad_norm),
                norms=self._meter.after_step(state.global_step) if self._meter else None,
                skipped=bool(self._trainer.accelerator.optimizer_step_was_skipped),
            )
        self._begin_step()

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
        if self._is_held and self.run is not None:
            self.run.trained(self._trainer.model)
        else:
            self._complete()

    @property
    def _writes(self) -> bool:
        return bool(self._trainer.is_world_process_zero())

    def _begin_step(self) -> None:
        self._ids: list[torch.Tensor] = []
        self._num_tokens: list[torch.Tensor | int] = []
        self._losses: list[torch.Tensor] = []
        self._grad_norm = None
        self._learning_rate = 0.0

    def _complete(self) -> None:
        """Records that the attempt went to its end, unless it has ended already."""
        if self.run is None or not self.run.is_open:
            return
        self.run.finish(TrainingState.TRAINING_STATE_COMPLETED, self._trainer.model)
        for directory in self._copies:
            copy_record(self.run.path, directory)
        self._copies.clear()

    def _fail(self, error: BaseException) -> None:
        """Records that an exception ended the attempt, unless recording is what cannot be done."""
        if self.run is None or not self.run.is_open:
            return
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        state = (
            TrainingState.TRAINING_STATE_INTERRUPTED
            if interrupted
            else TrainingState.TRAINING_STATE_FAILED
        )
        detail = "" if interrupted else f"{type(error).__name__}: {error}"
        try:
            self.run.finish(state, self._trainer.model, detail)
        except Exception as unwritten:  # noqa: BLE001 - the training's own error is the one to see
            _log.warning("how the training ended is not on record: %s", unwritten)


class _StepEnd(TrainerCallback):
    """Hands on the end of a step, from the place that it has among a trainer's callbacks."""

    def __init__(self, then: Callable[[Any, Any], None]) -> None:
        self._then = then

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step counts."""
        del control, kwargs
        self._then(args, state)
