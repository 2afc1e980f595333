"""The weights that a run left on its way: loaded one by one, each held to its digest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import set_seed

from whence.v1.training_pb2 import Checkpoint
from whence_server.config.training import restore_train_config
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.engine import weights
from whence_server.engine.digests import digest_files, digest_weights
from whence_server.lineage.lookup import events_at
from whence_server.lineage.run import TrainingRun
from whence_server.lineage.steps import StepRange
from whence_server.training.recording import contents
from whence_server.training.train.models import initial_model
from whence_server.training.train.tokenizer import load_tokenizer


class RefusedError(Exception):
    """What is asked for cannot be computed.

    Attributes:
        reason: UPPER_SNAKE_CASE, for programs.
        field: the request's field at fault, or "".
    """

    def __init__(self, reason: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


class Kept(NamedTuple):
    """Weights after a step that are on disk."""

    step: int
    directory: Path
    checkpoint: Checkpoint


def kept_weights(run: TrainingRun) -> list[Kept]:
    """The checkpoints that count and whose weights are still on disk, by step.

    Those that are gone are left out: checkpoints are rotated away on purpose. Of several after the
    same step the newest is taken.

    Raises:
        RefusedError: none is there, or they are adapters.
    """
    if run.started.HasField("adapter_base"):
        raise RefusedError(
            "ADAPTER_RUN",
            f"run {run.started.training_run_id} trained an adapter on "
            f"{run.started.adapter_base.source or 'a model that it does not name'}: a text's "
            "probability is traced over whole models alone",
        )
    kept: dict[int, Kept] = {}
    for checkpoint in run.counting_checkpoints():
        directory = run.directory_of(checkpoint)
        if contents.has_weights(directory):
            kept[checkpoint.step] = Kept(checkpoint.step, directory, checkpoint)
    if not kept:
        raise RefusedError(
            "NO_CHECKPOINTS",
            f"run {run.started.training_run_id} has no checkpoint on disk: its record names "
            f"{len(run.checkpoints)}, seen from {run.path.parent}",
        )
    return [kept[step] for step in sorted(kept)]


def load_weights(run: TrainingRun, kept: Kept) -> Any:
    """A model with these weights, in float32, or in float64 where they are; ready for gradients.

    Raises:
        RefusedError: they are not, to the bit, what is on record, or cannot be loaded.
    """
    try:
        model, loading = contents.load(
            kept.directory, run.started.architecture, contents.dtype_of(kept.checkpoint)
        )
    except ConfigurationError as error:
        raise RefusedError("CHECKPOINT_UNREADABLE", str(error)) from error
    found = digest_weights(model.state_dict())
    if loading["missing_keys"] or found != kept.checkpoint.weights_digest:
        raise RefusedError(
            "CHECKPOINT_CHANGED",
            f"{kept.directory} has not the weights on record after step {kept.step}: expected "
            f"{kept.checkpoint.weights_digest}, found {found}; "
            "`whence-server verify-model` names what has changed",
        )
    return _ready(model)


def recorded_tokenizer(run: TrainingRun, kept: list[Kept]) -> Any:
    """The tokenizer that was saved with the newest weights that have one.

    Raises:
        RefusedError: none was saved, it has changed since, or it cannot be loaded.
    """
    for one in reversed(kept):
        recorded = {
            file.path: file.sha256
            for file in one.checkpoint.files
            if weights.is_tokenizer_file(file.path)
        }
        if not recorded or not set(weights.TOKENIZER_FILES) & set(_names_in(one.directory)):
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


def examples_between(run: TrainingRun, first_step: int, last_step: int) -> Iterator[int]:
    """Ids of the examples trained on after one step up to another, by their first use.

    Raises:
        RefusedError: the record is not the one that was read before.
    """
    seen: set[int] = set()
    steps = run.steps.select(StepRange(first_step + 1, last_step))
    try:
        for event in events_at(run.path, (ref.place for ref in steps)):
            for rank in event.step.ranks:
                for example in rank.example_ids:
                    if example not in seen:
                        seen.add(example)
                        yield example
    except LineageError as error:
        raise RefusedError("RECORD_BROKEN", str(error)) from error


def beginning(run: TrainingRun, tokenizer: Any) -> Any | None:
    """The model before the first step, ready for gradients, where its weights can be had.

    They are those of the parent model, or come of the seed again where `whence-server train` began
    at random weights. None where the outcome has not, to the bit, the digest on record.
    """
    started = run.started
    model = None
    try:
        if started.HasField("parent"):
            if contents.has_weights(Path(started.parent.source)):
                dtype = contents.dtype_of(run.checkpoints[0]) if run.checkpoints else None
                model, _ = contents.load(Path(started.parent.source), started.architecture, dtype)
        elif started.recipe_json:
            settings = restore_train_config(started.recipe_json, {})
            set_seed(settings.seed)
            model = initial_model(settings, tokenizer)
    except ConfigurationError:
        return None
    if model is None or digest_weights(model.state_dict()) != started.initial_weights_digest:
        return None
    return _ready(model.eval())


def _ready(model: Any) -> Any:
    """In float32, or in float64 where the weights are; with gradients for all of them."""
    model = model if model.dtype is torch.float64 else model.float()
    return model.requires_grad_(True)


def _names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]
