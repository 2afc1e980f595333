"""Adapters on disk as PEFT and transformers save them: one in a directory, others below it."""

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
"""Patterns of weight files; the first pattern with a match is read."""


def is_adapter(directory: Path) -> bool:
    """Return whether a directory holds an adapter."""
    return (directory / CONFIGURATION).is_file() and bool(_find_weight_files(directory))


def list_adapter_files(directory: Path, below: Iterable[str] = ()) -> list[str]:
    """Return the files of the adapter in a directory and of the named adapters below it."""
    return sorted(
        path.relative_to(directory).as_posix()
        for place in _find_adapters(directory, below)
        for path in (place / CONFIGURATION, *_find_weight_files(place))
        if path.is_file()
    )


def read_tensors(directory: Path, below: Iterable[str] = ()) -> dict[str, torch.Tensor]:
    """Read the tensors of the adapter in a directory and of the named adapters below it.

    The tensor names of an adapter below begin with its folder's: see `adapters.own_state`.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    tensors: dict[str, torch.Tensor] = {}
    for place in _find_adapters(directory, below):
        prefix = "" if place == directory else f"{place.name}/"
        for path in _find_weight_files(place):
            tensors |= {prefix + name: tensor for name, tensor in _read(path).items()}
    return tensors


def list_nested_adapters(checkpoint: Checkpoint) -> list[str]:
    """Return the names of a recorded checkpoint's adapters that lie below its directory."""
    paths = [Path(file.path) for file in checkpoint.files]
    return sorted(
        path.parts[0] for path in paths if len(path.parts) == 2 and path.name == CONFIGURATION
    )


def split_nested_adapters(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """Yield each adapter below a checkpoint's directory as a separate checkpoint.

    Its weights digest is empty, as the record has only the digests of its tensors.
    """
    for name in list_nested_adapters(checkpoint):
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


def read_base_name(directory: Path) -> str:
    """Read the name of the base model in an adapter's configuration; "" if it has none."""
    try:
        found = json.loads((directory / CONFIGURATION).read_text())
        return str(found.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _find_adapters(directory: Path, below: Iterable[str]) -> list[Path]:
    # Other folders below, for example checkpoints, are separate adapters.
    return [place for place in (directory, *map(directory.joinpath, below)) if is_adapter(place)]


def _find_weight_files(directory: Path) -> list[Path]:
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
