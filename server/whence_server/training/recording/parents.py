"""What a trainer goes on from, where nobody said so: told by the weights, not by a name alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from whence.v1.model_pb2 import FileDigest
from whence.v1.training_pb2 import ParentModel
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.paths import format_path
from whence_server.engine import weights
from whence_server.engine.digests import digest_weights
from whence_server.training.recording import adapter_files, contents
from whence_server.training.recording.adapters import adapted, base_state, below, own_state
from whence_server.training.recording.setup import parent_model


def parent_of(trainer: Any, resumed_from: Path | None) -> ParentModel | None:
    """The model on disk that a training goes on from; None where that is not known.

    It is the checkpoint that the trainer resumes from, else the directory that the model's
    configuration names. A configuration names one too where a new model was made from it, and so a
    tensor of the files has to be in the model as well, to the bit.

    Args:
        trainer: stands at the beginning of its training.
        resumed_from: the checkpoint that it was told to go on from.
    """
    state = own_state(trainer.model)
    if adapted(trainer.model) is not None:
        # What an adapter goes on from is an adapter; else it is new, on the model below it.
        if resumed_from is None or not _is_saved_in(resumed_from, state):
            return None
        return parent_model(resumed_from.absolute(), digest_weights(state))
    directory = resumed_from or _directory_of(trainer.model)
    if directory is None or not _has_some_of(directory, trainer.model, state):
        return None
    return parent_model(directory.absolute(), digest_weights(state))


def base_of(model: Any) -> ParentModel | None:
    """The frozen model below a model's adapters; None where there are none.

    Its files are told where it lies in a directory and a tensor of them is in the model.
    """
    inner = adapted(model)
    if inner is None:
        return None
    base, state = below(inner), base_state(inner)
    digest = digest_weights(state) if state else ""
    directory = _directory_of(base)
    if directory is None or not _has_some_of(directory, base, state):
        name = getattr(getattr(base, "config", None), "_name_or_path", "")
        return ParentModel(source=format_path(str(name)), weights_digest=digest)
    parent = parent_model(directory.absolute(), digest)
    for file in contents.digests_of(directory, base_files(directory)).values():
        parent.files.append(
            FileDigest(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256)
        )
    return parent


def base_files(directory: Path) -> list[str]:
    """The files that make up the model below an adapter: its weights and configuration.

    Raises:
        ConfigurationError: there are no weights.
    """
    return sorted({*weights.list_weight_files(directory), "config.json"})


def _directory_of(model: Any) -> Path | None:
    """The directory that a model's configuration names."""
    named = getattr(getattr(model, "config", None), "_name_or_path", "")
    return Path(named) if named and Path(named).is_dir() else None


def _is_saved_in(directory: Path, state: Mapping[str, torch.Tensor]) -> bool:
    try:
        return digest_weights(adapter_files.tensors_in(directory)) == digest_weights(state)
    except ConfigurationError:
        return False


def _has_some_of(directory: Path, model: Any, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a tensor of a directory's files is in the model, to the bit."""
    try:
        names = weights.list_weight_files(directory)
    except (ConfigurationError, OSError):
        return False
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return any(_is_in(state, prefix, name, it) for name, it in _tensors(directory, names))


def _tensors(directory: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Those that tell one model from another: matrices, one at a time."""
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
    """Whether a state has this tensor, under its name with or without the base model's prefix."""
    found = state.get(name)
    if found is None:
        found = state.get(prefix + name, state.get(name.removeprefix(prefix)))
    if found is None or found.shape != tensor.shape:
        return False
    cast = tensor.to(found.dtype)
    return bool((cast != cast.flatten()[0]).any()) and torch.equal(found.cpu(), cast)
