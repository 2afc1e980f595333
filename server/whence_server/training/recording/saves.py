"""Detection of saved models: the files that were written, and the model's relation to training."""

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from whence_server.engines.transformers.digests import digest_weights
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training.recording.adapters import (
    find_adapted,
    format_adapter_prefix,
    get_trained_state,
)

_TENSORBOARD_PREFIX = "events.out.tfevents"
"""Prefix of files that TensorBoard may write to at any time."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Files of a directory and its subfolders, with size, modification time and inode."""

    files: Mapping[str, tuple[int, int, int]]

    def list_written_since(self, before: "Listing") -> list[str]:
        """Return the files that were written after another listing was made."""
        return sorted(name for name, seen in self.files.items() if before.files.get(name) != seen)


def list_directory(directory: Path) -> Listing:
    """List a directory, without checkpoints below it; a missing one has no files."""
    files = {}
    # Unlike a glob, a walk goes on where a folder is gone again or cannot be read.
    for path in (Path(folder, name) for folder, _, names in os.walk(directory) for name in names):
        name = path.relative_to(directory)
        is_other = name.parts[0].startswith("checkpoint") and len(name.parts) > 1
        if is_other or path.name.startswith((RECORD_NAME, _TENSORBOARD_PREFIX)):
            continue
        try:
            status = path.stat()
        except OSError:
            continue  # it is gone again, or leads nowhere
        if path.is_file():
            files[name.as_posix()] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return Listing(files)


SaveListener = Callable[[Any, Path, Listing], None]
"""Function that is called with a saved model, its directory and the listing before the save."""


@contextmanager
def watch_saves(saved: SaveListener) -> Iterator[None]:
    """Call a listener for every model that is saved by its own `save_pretrained` in the block.

    Models made by merging an adapter are remembered, too; see `get_merged_adapter_digest`.
    """
    with ExitStack() as stack:
        for kind in _find_model_classes():
            stack.enter_context(_wrap_method(kind, "save_pretrained", _report_saves_to(saved)))
        tuner = _find_loaded_attribute("peft.tuners.tuners_utils", "BaseTuner")
        if tuner is not None and "merge_and_unload" in vars(tuner):
            stack.enter_context(_wrap_method(tuner, "merge_and_unload", _remember_merge))
        yield


def is_derived_from(model: Any, trained: Any) -> bool:
    """Return whether a model is the trained one, a part of it, or made by merging its adapter."""
    if model in _merged or not isinstance(trained, nn.Module):
        return model in _merged
    return any(module is model for module in trained.modules())


def get_merged_adapter_digest(model: Any) -> str:
    """Return the weights digest of the adapter merged into a model; "" if none is known."""
    return _merged.get(model, "")


def holds_its_adapters(model: Any) -> bool:
    """Return whether a model still has its adapters, which merging removes."""
    try:
        return find_adapted(model) is not None and bool(get_trained_state(model))
    except Exception:  # noqa: BLE001 - PEFT's own, of a model that it has taken apart
        return False


_merged: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def _find_model_classes() -> Iterator[type]:
    for module, name in (
        ("transformers", "PreTrainedModel"),
        ("peft", "PeftModel"),
        ("sentence_transformers", "SentenceTransformer"),
    ):
        kind = _find_loaded_attribute(module, name)
        if kind is not None and hasattr(kind, "save_pretrained"):
            yield kind


def _find_loaded_attribute(module: str, name: str) -> Any:
    """Return an attribute of a module, or None if the module is not loaded or lacks it."""
    return getattr(sys.modules.get(module), name, None)


@contextmanager
def _wrap_method(kind: type, method: str, around: Callable[..., Any]) -> Iterator[None]:
    """Wrap a method of a class in the block."""
    original, is_own = getattr(kind, method), method in vars(kind)

    @functools.wraps(original)
    def call_around(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(kind, method, call_around)
    try:
        yield
    finally:
        if is_own:
            setattr(kind, method, original)
        else:
            delattr(kind, method)


def _report_saves_to(saved: SaveListener) -> Callable[..., Any]:
    inside: list[Any] = []

    def save(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
        to = args[0] if args else kwargs.get("save_directory", kwargs.get("path"))
        if inside or not isinstance(to, str | Path):
            # A model may save a part of it as a model.
            return original(model, *args, **kwargs)
        before = list_directory(Path(to))
        inside.append(model)
        try:
            outcome = original(model, *args, **kwargs)
        finally:
            inside.pop()
        saved(model, Path(to), before)
        return outcome

    return save


def _remember_merge(original: Callable[..., Any], tuner: Any, *args: Any, **kwargs: Any) -> Any:
    digest = _digest_adapters(tuner)
    merged = original(tuner, *args, **kwargs)
    if digest and isinstance(merged, nn.Module):
        _merged[merged] = digest
    return merged


def _digest_adapters(tuner: Any) -> str:
    """Return the weights digest of the adapters in PEFT's tuner; "" if it cannot be computed."""
    from peft import get_peft_model_state_dict

    try:
        return digest_weights(
            {
                f"{format_adapter_prefix(adapter)}base_model.{name}": tensor
                for adapter in tuner.peft_config
                for name, tensor in get_peft_model_state_dict(
                    tuner, adapter_name=adapter, save_embedding_layers=False
                ).items()
            }
        )
    except Exception:  # noqa: BLE001 - merging is not ours to break
        return ""
