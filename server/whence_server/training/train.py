"""What `whence-server train` does: from text files to a model that can be served, on record.

It is transformers' `Trainer` over blocks of text, with `record` on it.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import ProgressCallback, Trainer, TrainingArguments, set_seed
from transformers.data import default_data_collator
from transformers.utils import logging as transformers_logging

from whence.v1.training_pb2 import TrainingRunStarted
from whence_server.config.training import (
    TrainConfig,
    recorded_config,
    refuse_variables,
    train_config,
)
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.engine.digests import weights_digest
from whence_server.lineage.reader import RECORD_NAME, is_begun
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.texts import read_texts
from whence_server.lineage.whole import read_run
from whence_server.lineage.writer import RecordWriter
from whence_server.training import resuming
from whence_server.training.blocks import Cut, cut
from whence_server.training.models import initial_model
from whence_server.training.progress import LossOnTheBar, StopAt
from whence_server.training.recorder import record
from whence_server.training.setup import parent_model, tokenizer_digest
from whence_server.training.tokenizer import tokenizer_for_blocks, train_tokenizer

_LOGGING_STEPS = 20
_PARTIAL = "model.partial"

_log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A training that went to its end."""

    directory: Path
    """The model, with its record."""
    loss: float | None
    """In nats a token, as last logged; None where nothing was left to do."""


def train(given: dict[str, Any]) -> Trained:
    """Trains, or goes on with a training, and leaves the model in the output directory.

    The model appears there whole or not at all: `config.json`, without which no model is loaded,
    comes last.

    Args:
        given: settings by their name in `TrainConfig`; see `config.train_settings`.

    Raises:
        ConfigurationError: a setting or a text is wrong.
        LineageError: the record cannot be written, or tells of something else.
    """
    _require_one_process()
    if given.get("resume"):
        return _resume(given)
    settings = train_config(given)
    output = Path(settings.output)
    _require_empty(output)
    return _train(settings, None, None, None)


def continue_from(
    record_path: Path, checkpoint: Path | None, until_step: int, working_directory: Path
) -> Any:
    """Does a part of a recorded training once more, and records nothing.

    Args:
        record_path: the record of a `whence-server train`.
        checkpoint: one of its resumable checkpoints; None begins at the beginning.
        until_step: the last step to make.
        working_directory: for temporary files.

    Returns:
        The model after that step.

    Raises:
        LineageError: the record's texts have changed, or its beginning cannot be had again.
        ConfigurationError: it is not the record of a `whence-server train`.
    """
    recorded = read_run(record_path)
    settings = recorded_config(recorded.started.recipe_json, {})
    prepared = _prepare(settings, recorded, checkpoint)
    trainer = _trainer(settings, prepared, working_directory, saves=False)
    trainer.add_callback(StopAt(until_step))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.model


class _Prepared(NamedTuple):
    """All that a trainer needs."""

    model: Any
    tokenizer: Any
    training_set: Cut
    evaluation_set: Cut | None


def _resume(given: dict[str, Any]) -> Trained:
    if not given.get("output"):
        raise ConfigurationError("--output: which run is to be resumed? Give its directory")
    output = Path(given["output"])
    path = output / RECORD_NAME
    if not path.is_file():
        raise ConfigurationError(f"--resume: {output} has no run on record ({RECORD_NAME})")
    if not is_begun(path):
        raise ConfigurationError(
            f"--resume: the run in {output} was stopped before its record began; start it again, "
            "without --resume"
        )
    # Nobody else trains there from here on.
    writer = RecordWriter.resume(path)
    try:
        recorded = read_run(path)
        settings = recorded_config(recorded.started.recipe_json, given)
        if resuming.is_complete(output, recorded):
            _log.info("%s is complete: nothing is left to train", output)
            return Trained(output, None)
        checkpoint = resuming.last_whole_checkpoint(output, recorded)
        return _train(settings, recorded if recorded.attempts else None, checkpoint, writer)
    finally:
        writer.close()


def _train(
    settings: TrainConfig,
    recorded: TrainingRun | None,
    checkpoint: Path | None,
    writer: RecordWriter | None,
) -> Trained:
    output = Path(settings.output)
    prepared = _prepare(settings, recorded, checkpoint)
    if prepared.training_set.num_tokens_left:
        _log.info(
            "%d tokens at the texts' end fill no block and are left out",
            prepared.training_set.num_tokens_left,
        )
    parent = None
    if settings.from_model and recorded is None:
        digest = weights_digest(prepared.model.state_dict())
        parent = parent_model(Path(settings.from_model), digest)
    output.mkdir(parents=True, exist_ok=True)
    resuming.clear_beyond(output, checkpoint, recorded)
    trainer = _trainer(settings, prepared, output / resuming.CHECKPOINTS, saves=True)
    bar = LossOnTheBar()
    trainer.add_callback(bar)
    with record(
        trainer,
        directory=output,
        name=settings.name,
        norm_stride=settings.norm_stride,
        documents=prepared.training_set.documented,
        parent=parent,
        recipe_json=settings.recipe_json(),
        restart=settings.resume,
        writer=writer,
    ) as recorder:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            bar.close()
        # The attempt ends, and who watches it leaves, once the model is on record.
        _save(trainer.model, prepared.tokenizer, output)
        recorder.saved_model(output)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Trained(output, float(losses[-1]) if losses else None)


def _prepare(
    settings: TrainConfig, recorded: TrainingRun | None, checkpoint: Path | None
) -> _Prepared:
    refuse_variables(os.environ)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.resume and recorded is not None:
        _tell_other_threads(recorded)
    reading = read_texts([Path(text) for text in settings.texts], settings.unusable)
    for line in reading.skipped:
        _log.warning("left out: %s", line)
    if recorded is not None:
        resuming.require_same_documents(recorded, reading.documents)
    existing = checkpoint or settings.from_model or settings.tokenizer
    tokenizer = (
        tokenizer_for_blocks(Path(existing))
        if existing
        else train_tokenizer(reading.documents, settings.vocab_size)
    )
    training_set = cut(reading.documents, tokenizer, settings.block_size)
    evaluation_set = None
    if settings.eval:
        texts = read_texts([Path(text) for text in settings.eval], settings.unusable)
        evaluation_set = cut(texts.documents, tokenizer, settings.block_size)
    set_seed(settings.seed)
    model = initial_model(settings, tokenizer)
    if recorded is not None and checkpoint is None:
        _require_same_beginning(settings, recorded.started, tokenizer, model)
    return _Prepared(model, tokenizer, training_set, evaluation_set)


def _tell_other_threads(recorded: TrainingRun) -> None:
    before = recorded.attempts[-1].determinism.get("num_threads", "")
    if before not in {"", str(torch.get_num_threads())}:
        _log.warning(
            "resumed with %d torch threads instead of %s: the weights may differ in their last "
            "bits from those of an uninterrupted run",
            torch.get_num_threads(),
            before,
        )


def _require_same_beginning(
    settings: TrainConfig, recorded: TrainingRunStarted, tokenizer: Any, model: Any
) -> None:
    """Refuses to begin a run again with another tokenizer or other weights than it began with."""
    found = tokenizer_digest(tokenizer)
    if recorded.tokenizer_digest and found != recorded.tokenizer_digest:
        where = settings.from_model or settings.tokenizer or "the one that is trained on the texts"
        raise LineageError(
            f"the tokenizer has changed since the run began: {where} has the digest {found}, and "
            f"{recorded.tokenizer_digest} is on record"
        )
    found = weights_digest(model.state_dict())
    if recorded.initial_weights_digest and found != recorded.initial_weights_digest:
        where = settings.from_model or f"what seed {settings.seed} gives"
        raise LineageError(
            f"the weights that the run began with cannot be had again: {where} has the digest "
            f"{found}, and {recorded.initial_weights_digest} is on record"
        )


class _Trainer(Trainer):
    """Says in plain words that a checkpoint could not be written."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors have no type of their own for a full disk.
            detail = str(error).splitlines()[0]
            raise LineageError(
                f"the checkpoint of step {self.state.global_step} cannot be written ({detail}): "
                "if the disk is full, make room and go on with --resume"
            ) from error


def _trainer(
    settings: TrainConfig, prepared: _Prepared, directory: Path, *, saves: bool
) -> Trainer:
    evaluates = prepared.evaluation_set is not None
    trainer = _Trainer(
        model=prepared.model,
        args=TrainingArguments(
            output_dir=str(directory),
            num_train_epochs=settings.epochs or 1,
            max_steps=settings.max_steps or -1,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.scheduler,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            adam_beta2=settings.adam_beta2,
            max_grad_norm=settings.max_grad_norm,
            seed=settings.seed,
            use_cpu=settings.device == "cpu",
            dataloader_pin_memory=False,
            logging_steps=min(_LOGGING_STEPS, settings.max_steps or _LOGGING_STEPS),
            save_strategy="steps" if saves else "no",
            save_steps=settings.save_steps,
            eval_strategy="steps" if evaluates else "no",
            eval_steps=settings.eval_steps or settings.save_steps,
            report_to="none",
            disable_tqdm=False,
        ),
        data_collator=default_data_collator,
        train_dataset=prepared.training_set.blocks,
        eval_dataset=prepared.evaluation_set.blocks if prepared.evaluation_set else None,
        processing_class=prepared.tokenizer,
    )
    trainer.remove_callback(ProgressCallback)
    return trainer


def _save(model: Any, tokenizer: Any, output: Path) -> None:
    """Saves beside, then moves file by file: `config.json` last."""
    partial = output / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (output / "config.json").unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
            path.replace(output / path.name)
    except (OSError, SafetensorError) as error:
        raise LineageError(
            f"the model cannot be written to {output} ({error}): if the disk is full, make room "
            "and go on with --resume"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require_empty(output: Path) -> None:
    if is_begun(output / RECORD_NAME):
        raise ConfigurationError(
            f"--output {output}: a run is on record there; go on with it (--resume), or choose "
            "another directory"
        )
    if output.exists() and (not output.is_dir() or any(map(_is_foreign, output.iterdir()))):
        raise ConfigurationError(
            f"--output {output}: something else is there; give an empty or a new directory"
        )


def _is_foreign(path: Path) -> bool:
    """Whether it is something else than what a run leaves that was killed before it had begun."""
    if path.name == resuming.CHECKPOINTS and path.is_dir():
        return any(path.iterdir())
    return not path.name.startswith(RECORD_NAME)


def _require_one_process() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigurationError(
            "whence-server train runs in one process; for several, record a Trainer script of "
            "your own (whence_server.training.record) under torchrun"
        )
