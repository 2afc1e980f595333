"""What a trainer goes on from, where nobody said so: told by the weights, not by a name alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from whence.v1.training_pb2 import ParentModel
from whence_server.domain.errors import ConfigurationError
from whence_server.engine import weights
from whence_server.engine.digests import weights_digest
from whence_server.training.setup import parent_model


def parent_of(trainer: Any, resumed_from: Path | None) -> ParentModel | None:
    """The model on disk that a training goes on from; None where that is not known.

    It is the checkpoint that the trainer resumes from, else the directory that the model's
    configuration names. A configuration names one too where a new model was made from it, and so a
    tensor of the files has to be in the model as well, to the bit.

    Args:
        trainer: stands at the beginning of its training.
        resumed_from: the checkpoint that it was told to go on from.
    """
    model = trainer.model
    named = getattr(getattr(model, "config", None), "_name_or_path", "")
    directory = resumed_from or (Path(named) if named else None)
    if directory is None or not directory.is_dir():
        return None
    try:
        names = weights.weight_files(directory)
    except (ConfigurationError, OSError):
        return None
    if not any(_is_in(model, name, tensor) for name, tensor in _tensors(directory, names)):
        return None
    return parent_model(directory.absolute(), weights_digest(model.state_dict()))


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


def _is_in(model: Any, name: str, tensor: torch.Tensor) -> bool:
    """Whether the model has this tensor, under its name with or without the base model's prefix."""
    state = model.state_dict()
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    found = state.get(name)
    if found is None:
        found = state.get(prefix + name, state.get(name.removeprefix(prefix)))
    if found is None or found.shape != tensor.shape:
        return False
    cast = tensor.to(found.dtype)
    return bool((cast != cast.flatten()[0]).any()) and torch.equal(found.cpu(), cast)
