"""The weights that a run left on its way: loaded one by one, each held to its digest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from whence.v1.training_pb2 import Checkpoint
from whence_server.domain.errors import ConfigurationError
from whence_server.engine import weights
from whence_server.engine.digests import file_digests, weights_digest
from whence_server.training import contents
from whence_server.training.runs_on_record import RunOnRecord


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
    """Only its digests and tensors where the weights are those before the first step."""


def kept_weights(run: RunOnRecord) -> list[Kept]:
    """The checkpoints that count and whose weights are still on disk, by step.

    Those that are gone are left out: checkpoints are rotated away on purpose. Of several after the
    same step the newest is taken. Before the first step come the weights of the parent model, where
    it still is where it was.

    Raises:
        RefusedError: none is there.
    """
    kept: dict[int, Kept] = {}
    parent = _parent(run)
    if parent is not None:
        kept[0] = parent
    for checkpoint in run.counting_checkpoints():
        directory = run.directory_of(checkpoint)
        if _has_weights(directory):
            kept[checkpoint.step] = Kept(checkpoint.step, directory, checkpoint)
    if not kept:
        raise RefusedError(
            "NO_CHECKPOINTS",
            f"run {run.started.training_run_id} has no checkpoint on disk: its record names "
            f"{len(run.checkpoints)}, seen from {run.directory}",
        )
    return [kept[step] for step in sorted(kept)]


def load_weights(run: RunOnRecord, kept: Kept) -> Any:
    """A model with these weights, in float32, or in float64 where they are; ready for gradients.

    Raises:
        RefusedError: they are not, to the bit, what is on record, or cannot be loaded.
    """
    dtypes = {tensor.dtype for tensor in kept.checkpoint.tensors}
    dtype: Any = getattr(torch, dtypes.pop()) if len(dtypes) == 1 else None
    try:
        model, loading = contents.load(kept.directory, run.started.architecture, dtype)
    except ConfigurationError as error:
        raise RefusedError("CHECKPOINT_UNREADABLE", str(error)) from error
    found = weights_digest(model.state_dict())
    if loading["missing_keys"] or found != kept.checkpoint.weights_digest:
        raise RefusedError(
            "CHECKPOINT_CHANGED",
            f"{kept.directory} has not the weights on record after step {kept.step}: expected "
            f"{kept.checkpoint.weights_digest}, found {found}; "
            "`whence-server verify-model` names what has changed",
        )
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model if dtype is torch.float64 else model.float()


def load_tokenizer(run: RunOnRecord, kept: list[Kept]) -> Any:
    """The tokenizer that was saved with the newest weights that have one.

    Raises:
        RefusedError: none was saved, or it has changed since.
    """
    for one in reversed(kept):
        recorded = {
            file.path: file.sha256
            for file in one.checkpoint.files
            if file.path in weights.TOKENIZER_FILES
        }
        if not recorded or not set(weights.TOKENIZER_FILES) & set(_names_in(one.directory)):
            continue
        for name, sha256 in recorded.items():
            if not (one.directory / name).is_file():
                raise RefusedError("TOKENIZER_CHANGED", f"{one.directory / name} is missing")
            found = file_digests(one.directory, [name])[0].sha256
            if found != sha256:
                raise RefusedError(
                    "TOKENIZER_CHANGED",
                    f"{one.directory / name} is not as recorded: expected {sha256}, found {found}",
                )
        return AutoTokenizer.from_pretrained(one.directory, local_files_only=True)
    raise RefusedError(
        "NO_TOKENIZER",
        f"no checkpoint of run {run.started.training_run_id} has a tokenizer beside its weights",
    )


def examples_between(run: RunOnRecord, first_step: int, last_step: int) -> Iterator[int]:
    """Ids of the examples trained on after one step up to another, by their first use."""
    seen: set[int] = set()
    for number in range(first_step + 1, last_step + 1):
        step = run.steps.get(number)
        for rank in step.ranks if step is not None else ():
            for example in rank.example_ids:
                if example not in seen:
                    seen.add(example)
                    yield example


def _parent(run: RunOnRecord) -> Kept | None:
    started = run.started
    directory = Path(started.parent.source)
    if not started.HasField("parent") or not _has_weights(directory):
        return None
    dtypes = run.checkpoints[0].tensors if run.checkpoints else ()
    recorded = Checkpoint(weights_digest=started.initial_weights_digest, tensors=dtypes)
    return Kept(0, directory, recorded)


def _has_weights(directory: Path) -> bool:
    return any((directory / name).is_file() for name in weights.WEIGHT_FILES)


def _names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]
