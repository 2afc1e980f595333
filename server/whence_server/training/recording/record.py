"""Records what any Hugging Face `Trainer` does, from one line in its script.

    from whence_server.training import record

    record(trainer)
    trainer.train()

As a context manager it puts the attempt's end on record where the block ends, and not where the
training does: after what is saved or measured in between.

Here a trainer is checked and gets its `Recorder`.
"""

import logging
from pathlib import Path
from typing import Any

from transformers import Trainer

from whence.v1.training_pb2 import ParentModel
from whence_server.domain.errors import LineageError
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.writer import RecordWriter
from whence_server.training.recording.documented import DocumentedExamples
from whence_server.training.recording.opening import Options
from whence_server.training.recording.recorder import Recorder

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
    required: bool = False,
    writer: RecordWriter | None = None,
) -> Recorder:
    """Record a trainer's training from its beginning on; call it before `trainer.train()`.

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
        required: ends the training where it cannot be recorded any further. Without it recording
            stops there, which the log and the record say, and the training goes on.
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
        Options(
            path=where / RECORD_NAME,
            name=name or where.name,
            documents=documents,
            parent=parent,
            recipe_json=recipe_json,
            restart=restart,
            dataset=trainer.train_dataset,
            required=required,
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
    """Refuse what keeps only a part of the weights in each process."""
    for flag, what in (
        ("is_fsdp_enabled", "FSDP"),
        ("is_deepspeed_enabled", "DeepSpeed"),
        ("is_distributed_loading_by_transformers", "a model that is sharded at load time"),
    ):
        if getattr(trainer, flag, False):
            raise LineageError(f"{what} cannot be recorded yet: every process needs all weights")
