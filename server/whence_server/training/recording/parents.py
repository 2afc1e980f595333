"""Detection of the parent model of a training, checked by its weights."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from whence.v1.model_pb2 import FileDigest
from whence.v1.training_pb2 import ParentModel
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.paths import format_path
from whence_server.engines.transformers import weights
from whence_server.engines.transformers.digests import digest_weights
from whence_server.training.recording import adapter_files, contents
from whence_server.training.recording.adapters import (
    find_adapted,
    get_base,
    get_base_state,
    get_trained_state,
)
from whence_server.training.recording.setup import parent_model


def find_parent(trainer: Any, resumed_from: Path | None) -> ParentModel | None:
    """Return the model on disk that a training continues from; None if it is not known.

    It is the checkpoint that the trainer resumes from, or else the directory that the model's
    configuration names, if a tensor of its files is bitwise in the model: a configuration also
    names a directory if a new model was created from it.

    Args:
        trainer: trainer at the beginning of its training.
        resumed_from: checkpoint that the trainer resumes from; None for none.
    """
    state = get_trained_state(trainer.model)
    if find_adapted(trainer.model) is not None:
        # The parent of an adapter is an adapter; without one it is new, and has a base model only.
        if resumed_from is None or not _is_saved_in(resumed_from, state):
            return None
        return parent_model(resumed_from.absolute(), digest_weights(state))
    directory = resumed_from or _find_directory(trainer.model)
    if directory is None or not _has_some_of(directory, trainer.model, state):
        return None
    return parent_model(directory.absolute(), digest_weights(state))


def describe_base(model: Any) -> ParentModel | None:
    """Describe the frozen base model of a model's adapters; return None if it has no adapters.

    The description lists its files if it lies in a directory and a tensor of them is in the model.
    """
    inner = find_adapted(model)
    if inner is None:
        return None
    base, state = get_base(inner), get_base_state(inner)
    digest = digest_weights(state) if state else ""
    directory = _find_directory(base)
    if directory is None or not _has_some_of(directory, base, state):
        name = getattr(getattr(base, "config", None), "_name_or_path", "")
        return ParentModel(source=format_path(str(name)), weights_digest=digest)
    parent = parent_model(directory.absolute(), digest)
    for file in contents.digest_existing_files(directory, list_base_files(directory)).values():
        parent.files.append(
            FileDigest(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
        )
    return parent


def list_base_files(directory: Path) -> list[str]:
    """Return the names of a base model's files: weights and configuration.

    Raises:
        ConfigurationError: the directory has no weights.
    """
    return sorted({*weights.list_weight_files(directory), "config.json"})


def _find_directory(model: Any) -> Path | None:
    """Return the directory that a model's configuration names; None if it does not exist."""
    named = getattr(getattr(model, "config", None), "_name_or_path", "")
    return Path(named) if named and Path(named).is_dir() else None


def _is_saved_in(directory: Path, state: Mapping[str, torch.Tensor]) -> bool:
    try:
        return digest_weights(adapter_files.read_tensors(directory)) == digest_weights(state)
    except ConfigurationError:
        return False


def _has_some_of(directory: Path, model: Any, state: Mapping[str, torch.Tensor]) -> bool:
    """Return whether a tensor of a directory's files is bitwise in the model."""
    try:
        names = weights.list_weight_files(directory)
    except (ConfigurationError, OSError):
        return False
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return any(_is_in(state, prefix, name, it) for name, it in _read_matrices(directory, names))


def _read_matrices(directory: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of each matrix, as vectors are often equal in different models."""
    for name in names:
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(directory / name, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - it is no dictionary
                    if len(file.get_slice(key).get_shape()) > 1:
                        yield key, file.get_tensor(key)
        except (OSError, SafetensorError):
            continue


def _is_in(state: Mapping[str, torch.Tensor], prefix: str, name: str, tensor: torch.Tensor) -> bool:
    """Return whether a state has this tensor, under its name with or without the prefix."""
    found = state.get(name)
    if found is None:
        found = state.get(prefix + name, state.get(name.removeprefix(prefix)))
    if found is None or found.shape != tensor.shape:
        return False
    cast = tensor.to(found.dtype)
    return bool((cast != cast.flatten()[0]).any()) and torch.equal(found.cpu(), cast)
