"""Adapters on disk, as PEFT and transformers save them: one in a directory, others below it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from whence.v1.training_pb2 import Checkpoint
from whence_server.domain.errors import ConfigurationError

CONFIGURATION = "adapter_config.json"
_WEIGHTS = ("adapter_model*.safetensors", "adapter_model*.bin")
"""The first kind that is there is read."""


def is_adapter(directory: Path) -> bool:
    """Whether an adapter lies in a directory."""
    return (directory / CONFIGURATION).is_file() and bool(_weight_files(directory))


def names_in(directory: Path, below: Iterable[str] = ()) -> list[str]:
    """Configurations and weights of the adapter in a directory, and of named ones below it."""
    return sorted(
        path.relative_to(directory).as_posix()
        for place in _places(directory, below)
        for path in (place / CONFIGURATION, *_weight_files(place))
        if path.is_file()
    )


def tensors_in(directory: Path, below: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors of the adapter in a directory, and of named ones below it.

    The names of those below begin with their directory's: see `adapters.own_state`.

    Raises:
        ConfigurationError: they cannot be read.
    """
    tensors: dict[str, torch.Tensor] = {}
    for place in _places(directory, below):
        prefix = "" if place == directory else f"{place.name}/"
        for path in _weight_files(place):
            tensors |= {prefix + name: tensor for name, tensor in _read(path).items()}
    return tensors


def below_of(checkpoint: Checkpoint) -> list[str]:
    """The adapters of a checkpoint on record that lie below its directory, by their names."""
    paths = [Path(file.path) for file in checkpoint.files]
    return sorted(
        path.parts[0] for path in paths if len(path.parts) == 2 and path.name == CONFIGURATION
    )


def parts_of(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """Give each adapter that lies below a checkpoint's directory, as a checkpoint of its own.

    Its weights digest is not on record: its tensors' digests are.
    """
    for name in below_of(checkpoint):
        part = Checkpoint()
        part.CopyFrom(checkpoint)
        prefix = f"{name}/"
        part.path = name if checkpoint.path == "." else f"{checkpoint.path}/{name}"
        part.path_bytes = checkpoint.path_bytes and checkpoint.path_bytes + f"/{name}".encode()
        part.model_digest = part.weights_digest = ""
        del part.files[:], part.tensors[:]
        for file in checkpoint.files:
            if file.path.startswith(prefix):
                part.files.add().CopyFrom(file)
                part.files[-1].path = file.path.removeprefix(prefix)
        for tensor in checkpoint.tensors:
            if tensor.name.startswith(prefix):
                part.tensors.add().CopyFrom(tensor)
                part.tensors[-1].name = tensor.name.removeprefix(prefix)
        yield part


def base_named_in(directory: Path) -> str:
    """The model that an adapter's configuration says that it is on; "" where it says nothing."""
    try:
        found = json.loads((directory / CONFIGURATION).read_text())
        return str(found.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _places(directory: Path, below: Iterable[str]) -> list[Path]:
    # Others that lie below, as the checkpoints of a training may, are adapters of their own.
    return [place for place in (directory, *map(directory.joinpath, below)) if is_adapter(place)]


def _weight_files(directory: Path) -> list[Path]:
    for pattern in _WEIGHTS:
        if found := sorted(path for path in directory.glob(pattern) if path.is_file()):
            return found
    return []


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        read: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except MemoryError:
        raise
    except SafetensorError as error:
        raise ConfigurationError(
            f"the adapter in {path.parent} cannot be loaded: damaged safetensors file ({error})"
        ) from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ConfigurationError(
            f"the adapter in {path.parent} cannot be loaded: {type(error).__name__}: {reason}"
        ) from error
    return {name: value for name, value in read.items() if isinstance(value, torch.Tensor)}
