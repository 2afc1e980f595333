"""Loading of a run's checkpoints, each checked against its recorded digest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import set_seed

from whence.v1.training_pb2 import Checkpoint
from whence_server.config.training import restore_train_config
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.engines.transformers import weights
from whence_server.engines.transformers.digests import digest_files, digest_weights
from whence_server.lineage.lookup import read_events_at
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.steps import StepRange
from whence_server.training.recording import contents
from whence_server.training.train.models import create_initial_model
from whence_server.training.train.tokenizer import load_tokenizer


class RefusedError(Exception):
    """The text's emergence cannot be computed.

    Attributes:
        reason: code in UPPER_SNAKE_CASE, for programs.
        field: name of the invalid field of the request, or "".
    """

    def __init__(self, reason: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


class KeptWeights(NamedTuple):
    """Checkpoint whose weights are on disk."""

    step: int
    directory: Path
    checkpoint: Checkpoint


def list_kept_weights(run: TrainingRun) -> list[KeptWeights]:
    """Return the checkpoints that count and whose weights are on disk, by ascending step.

    Deleted checkpoints are left out, as trainers delete old ones on purpose. Among several of the
    same step the newest is returned.

    Raises:
        RefusedError: there is no checkpoint, or the run trained an adapter.
    """
    if run.started.HasField("adapter_base"):
        raise RefusedError(
            "ADAPTER_RUN",
            f"run {run.started.training_run_id} trained an adapter on "
            f"{run.started.adapter_base.source or 'a model that it does not name'}: a text's "
            "probability is traced over whole models alone",
        )
    kept: dict[int, KeptWeights] = {}
    for checkpoint in run.list_counting_checkpoints():
        directory = run.resolve_directory(checkpoint)
        if contents.has_weights(directory):
            kept[checkpoint.step] = KeptWeights(checkpoint.step, directory, checkpoint)
    if not kept:
        raise RefusedError(
            "NO_CHECKPOINTS",
            f"run {run.started.training_run_id} has no checkpoint on disk: its record names "
            f"{len(run.checkpoints)}, seen from {run.path.parent}",
        )
    return [kept[step] for step in sorted(kept)]


def load_weights(run: TrainingRun, kept: KeptWeights) -> Any:
    """Load a model with these weights and gradients, in float32; float64 stays float64.

    Raises:
        RefusedError: the weights are not bitwise the recorded ones, or cannot be loaded.
    """
    try:
        model, loading = contents.load_model(
            kept.directory, run.started.architecture, contents.find_common_dtype(kept.checkpoint)
        )
    except ConfigurationError as error:
        raise RefusedError("CHECKPOINT_UNREADABLE", str(error)) from error
    found = digest_weights(model.state_dict())
    if loading["missing_keys"] or found != kept.checkpoint.weights_digest:
        raise RefusedError(
            "CHECKPOINT_CHANGED",
            f"{kept.directory} does not have the weights on record after step {kept.step}: "
            f"expected {kept.checkpoint.weights_digest}, found {found}; "
            "`whence-server verify-model` names what has changed",
        )
    return _prepare(model)


def load_recorded_tokenizer(run: TrainingRun, kept: list[KeptWeights]) -> Any:
    """Load the tokenizer that was saved with the newest checkpoint that has one.

    Raises:
        RefusedError: no tokenizer was saved, it was changed, or it cannot be loaded.
    """
    for one in reversed(kept):
        recorded = {
            file.path: file.sha256
            for file in one.checkpoint.files
            if weights.is_tokenizer_file(file.path)
        }
        if not recorded or not set(weights.TOKENIZER_FILES) & set(_list_names(one.directory)):
            continue
        for name, sha256 in recorded.items():
            if not (one.directory / name).is_file():
                raise RefusedError("TOKENIZER_CHANGED", f"{one.directory / name} is missing")
            found = digest_files(one.directory, [name])[0].sha256
            if found != sha256:
                raise RefusedError(
                    "TOKENIZER_CHANGED",
                    f"{one.directory / name} is not as recorded: expected {sha256}, found {found}",
                )
        try:
            return load_tokenizer(one.directory)
        except ConfigurationError as error:
            raise RefusedError("TOKENIZER_UNREADABLE", str(error)) from error
    raise RefusedError(
        "NO_TOKENIZER",
        f"no checkpoint of run {run.started.training_run_id} has a tokenizer beside its weights",
    )


def iterate_examples_between(run: TrainingRun, first_step: int, last_step: int) -> Iterator[int]:
    """Yield the ids of the examples of steps (first_step, last_step], in order of first use.

    Raises:
        RefusedError: the record has changed since it was read.
    """
    seen: set[int] = set()
    steps = run.steps.select(StepRange(first_step + 1, last_step))
    try:
        for event in read_events_at(run.path, (ref.place for ref in steps)):
            for rank in event.step.ranks:
                for example in rank.example_ids:
                    if example not in seen:
                        seen.add(example)
                        yield example
    except LineageError as error:
        raise RefusedError("RECORD_BROKEN", str(error)) from error


def load_initial_model(run: TrainingRun, tokenizer: Any) -> Any | None:
    """Return the model before the first step, with gradients; None if it cannot be reproduced.

    Its weights are those of the parent model, or, for a `whence-server train` from random weights,
    are drawn again from the seed. They must have the digest on record.
    """
    started = run.started
    model = None
    try:
        if started.HasField("parent"):
            if contents.has_weights(Path(started.parent.source)):
                dtype = contents.find_common_dtype(run.checkpoints[0]) if run.checkpoints else None
                model, _ = contents.load_model(
                    Path(started.parent.source), started.architecture, dtype
                )
        elif started.recipe_json:
            settings = restore_train_config(started.recipe_json, {})
            set_seed(settings.seed)
            model = create_initial_model(settings, tokenizer)
    except ConfigurationError:
        return None
    if model is None or digest_weights(model.state_dict()) != started.initial_weights_digest:
        return None
    return _prepare(model.eval())


def _prepare(model: Any) -> Any:
    """Convert a model to float32 (float64 stays), and enable all gradients."""
    model = model if model.dtype is torch.float64 else model.float()
    return model.requires_grad_(True)


def _list_names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]
