"""What `whence-server train` does: from text files to a model that can be served, on record.

It is transformers' `Trainer` over blocks of text, with `record` on it.
"""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from whence_server.config.environment import read_world_size
from whence_server.config.training import TrainConfig, make_train_config, restore_train_config
from whence_server.domain.errors import ConfigurationError
from whence_server.engine.digests import digest_weights
from whence_server.lineage.reader import RECORD_NAME, is_begun
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.whole import read_run
from whence_server.lineage.writer import RecordWriter
from whence_server.training.recording.record import record
from whence_server.training.recording.setup import parent_model
from whence_server.training.train import resuming
from whence_server.training.train.output import require_empty, save_model
from whence_server.training.train.preparing import prepare
from whence_server.training.train.progress import LossOnTheBar, StopAt
from whence_server.training.train.text_trainer import text_trainer

_log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A training that went to its end."""

    directory: Path
    """The model, with its record."""
    loss: float | None
    """In nats a token, as last logged; None where nothing was left to do."""


def train(given: dict[str, Any]) -> Trained:
    """Train, or goes on with a training, and leaves the model in the output directory.

    The model appears there whole or not at all: `config.json`, without which no model is loaded,
    comes last.

    Args:
        given: settings by their name in `TrainConfig`; see `config.read_train_settings`.

    Raises:
        ConfigurationError: a setting or a text is wrong.
        LineageError: the record cannot be written, or tells of something else.
    """
    _require_one_process()
    if given.get("resume"):
        return _resume(given)
    settings = make_train_config(given)
    output = Path(settings.output)
    require_empty(output)
    return _train(settings, None, None, None)


def continue_from(
    record_path: Path, checkpoint: Path | None, until_step: int, working_directory: Path
) -> Any:
    """Do a part of a recorded training once more, and records nothing.

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
    settings = restore_train_config(recorded.started.recipe_json, {})
    prepared = prepare(settings, recorded, checkpoint)
    trainer = text_trainer(settings, prepared, working_directory, saves=False)
    trainer.add_callback(StopAt(until_step))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.model


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
        settings = restore_train_config(recorded.started.recipe_json, given)
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
    prepared = prepare(settings, recorded, checkpoint)
    if prepared.training_set.num_tokens_left:
        _log.info(
            "%d tokens at the texts' end fill no block and are left out",
            prepared.training_set.num_tokens_left,
        )
    parent = None
    if settings.from_model and recorded is None:
        digest = digest_weights(prepared.model.state_dict())
        parent = parent_model(Path(settings.from_model), digest)
    output.mkdir(parents=True, exist_ok=True)
    resuming.clear_beyond(output, checkpoint, recorded)
    trainer = text_trainer(settings, prepared, output / resuming.CHECKPOINTS, saves=True)
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
        required=True,
        writer=writer,
    ) as recorder:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            bar.close()
        # The attempt ends, and who watches it leaves, once the model is on record.
        with recorder.saving():
            save_model(trainer.model, prepared.tokenizer, output)
        recorder.saved_model(output)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Trained(output, float(losses[-1]) if losses else None)


def _require_one_process() -> None:
    if read_world_size() > 1:
        raise ConfigurationError(
            "whence-server train runs in one process; for several, record a Trainer script of "
            "your own (whence_server.training.record) under torchrun"
        )
