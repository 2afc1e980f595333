"""Training of a model on text files with transformers' `Trainer`, recorded by `record`."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from whence_server.config.environment import read_world_size
from whence_server.config.training import TrainConfig, make_train_config, restore_train_config
from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.digests import digest_weights
from whence_server.lineage.reader import RECORD_NAME, is_begun
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.whole import read_run
from whence_server.lineage.writer import RecordWriter
from whence_server.training.recording.record import record
from whence_server.training.recording.setup import parent_model
from whence_server.training.train import resuming
from whence_server.training.train.output import require_empty, save_model
from whence_server.training.train.preparing import prepare
from whence_server.training.train.progress import LossProgressBar, StopAfterStep
from whence_server.training.train.text_trainer import make_text_trainer

_log = logging.getLogger(__name__)


class TrainingResult(NamedTuple):
    """Result of a completed training."""

    directory: Path
    """Directory of the model and its record."""
    loss: float | None
    """Last logged loss, in nats per token; None if the run was complete already."""


def train(given: dict[str, Any]) -> TrainingResult:
    """Train, or resume a training, and save the model to the output directory.

    `config.json`, without which no model is loaded, is written last, so that an incomplete model is
    never loaded.

    Args:
        given: settings by their name in `TrainConfig`; see `config.read_train_settings`.

    Raises:
        ConfigurationError: a setting or a text is invalid.
        LineageError: the record cannot be written, or does not match texts or weights.
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
    """Repeat a part of a recorded training without recording it.

    Args:
        record_path: record of a `whence-server train`.
        checkpoint: resumable checkpoint to begin from; None for the run's beginning.
        until_step: the last step to make.
        working_directory: directory for temporary files.

    Returns:
        The model after that step.

    Raises:
        LineageError: the texts have changed, or the initial weights cannot be reproduced.
        ConfigurationError: the record is not one of `whence-server train`.
    """
    recorded = read_run(record_path)
    settings = restore_train_config(recorded.started.recipe_json, {})
    prepared = prepare(settings, recorded, checkpoint)
    trainer = make_text_trainer(settings, prepared, working_directory, saves=False)
    trainer.add_callback(StopAfterStep(until_step))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.model


def _resume(given: dict[str, Any]) -> TrainingResult:
    if not given.get("output"):
        raise ConfigurationError("--output is missing: give the directory of the run to resume")
    output = Path(given["output"])
    path = output / RECORD_NAME
    if not path.is_file():
        raise ConfigurationError(f"--resume: {output} has no run on record ({RECORD_NAME})")
    if not is_begun(path):
        raise ConfigurationError(
            f"--resume: the run in {output} was stopped before its record began; start it again, "
            "without --resume"
        )
    # From here on the lock keeps other processes from training there.
    writer = RecordWriter.resume(path)
    try:
        recorded = read_run(path)
        settings = restore_train_config(recorded.started.recipe_json, given)
        if resuming.is_complete(output, recorded):
            _log.info("%s is complete: nothing is left to train", output)
            return TrainingResult(output, None)
        checkpoint = resuming.find_last_whole_checkpoint(output, recorded)
        return _train(settings, recorded if recorded.attempts else None, checkpoint, writer)
    finally:
        writer.close()


def _train(
    settings: TrainConfig,
    recorded: TrainingRun | None,
    checkpoint: Path | None,
    writer: RecordWriter | None,
) -> TrainingResult:
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
    trainer = make_text_trainer(settings, prepared, output / resuming.CHECKPOINTS, saves=True)
    bar = LossProgressBar()
    trainer.add_callback(bar)
    with record(
        trainer,
        directory=output,
        name=settings.name,
        norm_stride=settings.norm_stride,
        documents=prepared.training_set.documented,
        parent=parent,
        recipe_json=settings.make_recipe_json(),
        restart=settings.resume,
        required=True,
        writer=writer,
    ) as recorder:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            bar.close()
        # The attempt ends, and watching clients are told so, once the model is recorded.
        with recorder.defer_records():
            save_model(trainer.model, prepared.tokenizer, output)
        recorder.record_saved_model(output)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return TrainingResult(output, float(losses[-1]) if losses else None)


def _require_one_process() -> None:
    if read_world_size() > 1:
        raise ConfigurationError(
            "whence-server train runs in one process; for several, record a Trainer script of "
            "your own (whence_server.training.record) under torchrun"
        )
