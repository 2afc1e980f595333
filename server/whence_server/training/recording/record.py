"""Recording of any Hugging Face `Trainer`, with one line in its script.

    from whence_server.training import record

    record(trainer)
    trainer.train()

As a context manager it records the attempt's end at the end of the block instead of the end of the
training, and so after models that are saved, and evaluations, in the block.
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
    """Record a trainer's training; call it before `trainer.train()`.

    A training that resumes from a checkpoint (`resume_from_checkpoint`) continues its record. In a
    distributed training every process calls this; rank 0 writes.

    Args:
        trainer: the trainer. FSDP, DeepSpeed and hyperparameter search are refused.
        directory: directory of `lineage.binpb`; the trainer's output directory by default.
        name: name of the run for people; the directory's name by default.
        norm_stride: update and weight norms are measured in every `norm_stride`-th step; 0 for
            never. They need a copy of the weights in memory.
        documents: the documents that the dataset's examples were cut from, if known.
        keep_checkpoints: True to remove the trainer's `save_total_limit`, so that every recorded
            checkpoint stays on disk; False keeps the limit, and the record names deleted ones.
        parent: the model that the training continues from (see `parent_model`). By default it is
            the directory that the model was loaded from, if it still has the model's weights.
        recipe_json: settings from which the trainer can be built again.
        restart: True to continue an existing record although the training begins at step 0, as
            after a kill before the first checkpoint. The weights must be the recorded initial ones.
        required: True to end the training when it cannot be recorded. False stops recording, which
            the log and the record say, and the training continues.
        writer: writer that already holds the record's lock; None opens the record.

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
            f"documents: they describe {len(documents.pieces)} examples by index; the trainer's "
            f"dataset is a {type(dataset).__name__} without a length"
        )
    if len(documents.pieces) != len(dataset):
        raise LineageError(
            f"documents: they describe {len(documents.pieces)} examples; the trainer's dataset has "
            f"{len(dataset)}"
        )


def _require_whole_weights(trainer: Any) -> None:
    """Refuse trainers that keep only a part of the weights in each process."""
    for flag, what in (
        ("is_fsdp_enabled", "FSDP"),
        ("is_deepspeed_enabled", "DeepSpeed"),
        ("is_distributed_loading_by_transformers", "a model that is sharded at load time"),
    ):
        if getattr(trainer, flag, False):
            raise LineageError(f"{what} cannot be recorded yet: every process needs all weights")
