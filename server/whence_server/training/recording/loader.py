"""A trainer's data loader, whatever made it, whose batches carry their examples' ids.

The loader is changed in place once it is there, so that the code that makes it meets nothing but
its own dataset and collator. Only the training's own loop is given the ids; a reader that goes
through the loader meanwhile, a callback for one, gets the batches as they are without a record.
"""

import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.data_loader import IterableDatasetShard  # type: ignore[import-untyped]
from torch.utils.data import DataLoader, IterableDataset

from whence_server.training.recording.tagging import (
    IDS_KEY,
    TaggedCollator,
    is_tagged,
    tagged,
    untagged,
)


class ExampleIds:
    """The ids of the batches that a training's loop has fetched and not trained on yet.

    Attributes:
        obstacle: why the loader's batches carry no ids; "" where they do, as far as is known.
    """

    def __init__(self) -> None:
        self.obstacle = "the trainer's data loader is not asked for by its own training loop"
        self._fetched: list[tuple[Any, torch.Tensor | None]] = []
        self._is_fetching = False
        self._undo: list[Callable[[], None]] = []

    def tag(self, loader: Any) -> Any:
        """Makes a loader's batches carry ids, in place; gives the loader."""
        base = getattr(loader, "base_dataloader", loader)
        self.obstacle = _obstacle(base)
        if not self.obstacle and not is_tagged(_dataset_of(base)):
            self._tag(base)
        return loader

    def fetch(self, get: Callable[..., Any], batches: Iterator[Any], *args: Any, **kw: Any) -> Any:
        """Fetches a step's batches by the trainer's own `get_batch_samples`, without their ids."""
        self._fetched.clear()
        return get(_Fetching(batches, self), *args, **kw)

    def of(self, batch: Any) -> torch.Tensor | None:
        """The ids of a batch that was fetched, shape (B,); None where it has none."""
        for number, (fetched, ids) in enumerate(self._fetched):
            if fetched is batch:
                del self._fetched[: number + 1]
                return ids
        return None

    def why_none(self, batch: Any) -> str:
        """The reason why a batch has no ids."""
        if self.obstacle:
            return self.obstacle
        if not isinstance(batch, MutableMapping):
            return f"the data collator gives a {_name(batch)}, and only a dictionary can carry ids"
        return (
            f"a {_name(batch)} came without them: its sampler takes examples by something else "
            "than a number, or it was made anew on its way from the data loader"
        )

    def release(self) -> None:
        """Leaves the loaders as they were."""
        self._fetched.clear()
        while self._undo:
            self._undo.pop()()

    @contextmanager
    def _fetches(self) -> Iterator[None]:
        before, self._is_fetching = self._is_fetching, True
        try:
            yield
        finally:
            self._is_fetching = before

    def take(self, batches: Iterator[Any]) -> Any:
        """The next batch, its ids taken out and kept."""
        with self._fetches():
            batch = next(batches)
        self._fetched.append((batch, _taken_out(batch)))
        return batch

    def _tag(self, base: Any) -> None:
        owner = base.dataset if isinstance(base.dataset, IterableDatasetShard) else base
        dataset, collate, kind = owner.dataset, base.collate_fn, type(base)
        shown = {"__iter__": _ids_for_the_loop_alone(kind), "__module__": kind.__module__}
        iterates: Any = type(kind.__name__, (kind,), shown)
        base.__class__ = iterates
        vars(base)["whence_shows_ids"] = lambda: self._is_fetching
        # A data loader lets nobody set these the usual way.
        vars(owner)["dataset"], vars(base)["collate_fn"] = tagged(dataset), TaggedCollator(collate)

        def restore() -> None:
            base.__class__ = kind
            del vars(base)["whence_shows_ids"]
            vars(owner)["dataset"], vars(base)["collate_fn"] = dataset, collate

        self._undo.append(restore)


class _Fetching:
    """A training loop's iterator over batches, without their ids."""

    def __init__(self, batches: Iterator[Any], ids: ExampleIds) -> None:
        self._batches, self._ids = batches, ids

    def __iter__(self) -> "_Fetching":
        return self

    def __next__(self) -> Any:
        return self._ids.take(self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


def _ids_for_the_loop_alone(kind: Any) -> Callable[[Any], "_Shown"]:
    """The `__iter__` of a tagged data loader of some class."""
    return lambda loader: _Shown(kind.__iter__(loader), vars(loader)["whence_shows_ids"])


class _Shown:
    """A data loader's iterator; begun at once, as that draws from torch's random state."""

    def __init__(self, batches: Iterator[Any], shows_ids: Callable[[], bool]) -> None:
        self._batches, self._shows_ids = batches, shows_ids

    def __iter__(self) -> "_Shown":
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        if not self._shows_ids():
            _taken_out(batch)
        return batch

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # where the loader's own has one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


def read_by(trainer: Any, loader: Any) -> Any:
    """The dataset whose rows a loader reads: the trainer's, or another one."""
    base = getattr(loader, "base_dataloader", loader)
    if not isinstance(base, DataLoader):
        return trainer.train_dataset
    read = untagged(_dataset_of(base))
    return trainer.train_dataset if _same_rows(trainer.train_dataset, read) else read


def _same_rows(one: Any, other: Any) -> bool:
    """Whether a number means the same row in both."""
    if one is other:
        return True
    if not (_is_of_datasets(one, "Dataset") and _is_of_datasets(other, "Dataset")):
        # Streams are known by the order of arrival alone.
        return isinstance(one, IterableDataset) and isinstance(other, IterableDataset)
    # Removing columns keeps the table of rows; shuffling, selecting and filtering do not.
    return len(one) == len(other) and _order_of(one) == _order_of(other)


def _order_of(dataset: Any) -> Any:
    """The numbers of the rows in the table below, where they are not simply those from 0 on."""
    indices = dataset._indices  # noqa: SLF001 - nowhere else
    return None if indices is None else indices.table


def _dataset_of(base: Any) -> Any:
    dataset = base.dataset
    return dataset.dataset if isinstance(dataset, IterableDatasetShard) else dataset


def _obstacle(base: Any) -> str:
    """The reason why a loader's batches can carry no ids."""
    if not isinstance(base, DataLoader):
        return f"the data loader is a {_name(base)}, and no torch DataLoader"
    if not base._auto_collation:  # noqa: SLF001 - nowhere else
        return "the dataset gives whole batches, whose examples have no numbers"
    if getattr(base.dataset, "_distributed", None) is not None:
        return "each process reads its own share of a datasets.IterableDataset"
    return ""


def _is_of_datasets(dataset: Any, kind: str) -> bool:
    """Whether it is of one of the classes of `datasets`, which need not be installed."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(dataset, getattr(datasets, kind))


def _taken_out(batch: Any) -> torch.Tensor | None:
    if not isinstance(batch, MutableMapping) or IDS_KEY not in batch:
        return None
    ids: torch.Tensor = batch.pop(IDS_KEY)
    return ids


def _name(value: Any) -> str:
    return type(value).__name__
