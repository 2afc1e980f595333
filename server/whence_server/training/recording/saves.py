"""Models that are saved, by whatever method: which files that wrote, and whose weights they are."""

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

from whence_server.engine.digests import digest_weights
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training.recording.adapters import adapted, adapter_prefix, own_state

_OF_PLOTS = "events.out.tfevents"
"""Files that TensorBoard writes to at any time."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a directory and of those below, with what changes when they are written."""

    files: Mapping[str, tuple[int, int, int]]

    def since(self, before: "Listing") -> list[str]:
        """The files that were written after another listing was made."""
        return sorted(name for name, seen in self.files.items() if before.files.get(name) != seen)


def listing(directory: Path) -> Listing:
    """Look at a directory; one that is not there has no files. Checkpoints below are left out."""
    files = {}
    # Unlike a glob, a walk goes on where a folder is gone again or cannot be read.
    for path in (Path(folder, name) for folder, _, names in os.walk(directory) for name in names):
        name = path.relative_to(directory)
        is_other = name.parts[0].startswith("checkpoint") and len(name.parts) > 1
        if is_other or path.name.startswith((RECORD_NAME, _OF_PLOTS)):
            continue
        try:
            status = path.stat()
        except OSError:
            continue  # it is gone again, or leads nowhere
        if path.is_file():
            files[name.as_posix()] = (status.st_size, status.st_mtime_ns, status.st_ino)
    return Listing(files)


Saved = Callable[[Any, Path, Listing], None]
"""Is told of a model, of the directory that it was saved to, and of what lay there before."""


@contextmanager
def watched(saved: Saved) -> Iterator[None]:
    """Tell of every model that is saved by its own `save_pretrained` meanwhile.

    It remembers also which models came of merging an adapter: see `merged_adapter`.
    """
    with ExitStack() as stack:
        for kind in _kinds_of_models():
            stack.enter_context(_around(kind, "save_pretrained", _telling(saved)))
        tuner = _attribute("peft.tuners.tuners_utils", "BaseTuner")
        if tuner is not None and "merge_and_unload" in vars(tuner):
            stack.enter_context(_around(tuner, "merge_and_unload", _remembering))
        yield


def comes_of(model: Any, trained: Any) -> bool:
    """Whether a model is the one that was trained, a part of it, or came of merging its adapter."""
    if model in _merged or not isinstance(trained, nn.Module):
        return model in _merged
    return any(module is model for module in trained.modules())


def merged_adapter(model: Any) -> str:
    """The weights digest of the adapter that was merged into a model; "" where none is known."""
    return _merged.get(model, "")


def holds_its_adapters(model: Any) -> bool:
    """Whether a model that was given adapters has them still: merging takes them out of it."""
    try:
        return adapted(model) is not None and bool(own_state(model))
    except Exception:  # noqa: BLE001 - PEFT's own, of a model that it has taken apart
        return False


_merged: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def _kinds_of_models() -> Iterator[type]:
    for module, name in (
        ("transformers", "PreTrainedModel"),
        ("peft", "PeftModel"),
        ("sentence_transformers", "SentenceTransformer"),
    ):
        kind = _attribute(module, name)
        if kind is not None and hasattr(kind, "save_pretrained"):
            yield kind


def _attribute(module: str, name: str) -> Any:
    """Something of a module that is loaded already."""
    return getattr(sys.modules.get(module), name, None)


@contextmanager
def _around(kind: type, method: str, around: Callable[..., Any]) -> Iterator[None]:
    """Put something around a method of a class for a while."""
    original, is_own = getattr(kind, method), method in vars(kind)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    setattr(kind, method, wrapped)
    try:
        yield
    finally:
        if is_own:
            setattr(kind, method, original)
        else:
            delattr(kind, method)


def _telling(saved: Saved) -> Callable[..., Any]:
    inside: list[Any] = []

    def save(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
        to = args[0] if args else kwargs.get("save_directory", kwargs.get("path"))
        if inside or not isinstance(to, str | Path):
            # A model may save another that is a part of it.
            return original(model, *args, **kwargs)
        before = listing(Path(to))
        inside.append(model)
        try:
            outcome = original(model, *args, **kwargs)
        finally:
            inside.pop()
        saved(model, Path(to), before)
        return outcome

    return save


def _remembering(original: Callable[..., Any], tuner: Any, *args: Any, **kwargs: Any) -> Any:
    digest = _digest_of(tuner)
    merged = original(tuner, *args, **kwargs)
    if digest and isinstance(merged, nn.Module):
        _merged[merged] = digest
    return merged


def _digest_of(tuner: Any) -> str:
    """The digest of the adapters in PEFT's tuner, as of the model that it is in."""
    from peft import get_peft_model_state_dict

    try:
        return digest_weights(
            {
                f"{adapter_prefix(adapter)}base_model.{name}": tensor
                for adapter in tuner.peft_config
                for name, tensor in get_peft_model_state_dict(
                    tuner, adapter_name=adapter, save_embedding_layers=False
                ).items()
            }
        )
    except Exception:  # noqa: BLE001 - merging is not ours to break
        return ""
