"""Ids of the examples that a trainer's data loader reads, for any kind of loader.

The loader keeps its class, its dataset and its collator. Only torch's iterator over one pass reads
tagged copies of dataset and collator, and it yields the batches that it would yield without a
record. The ids of a batch are kept in a table with the batch's tensors as keys, so that they are
found after any code of the loader's own. If only accelerate's own loader lies between torch's
iterator and the training loop, the ids travel in the batch instead.
"""

import sys
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from accelerate.data_loader import (  # type: ignore[import-untyped]
    DataLoaderDispatcher,
    DataLoaderShard,
    IterableDatasetShard,
)
from torch.utils.data import DataLoader, IterableDataset, IterDataPipe, MapDataPipe
from torch.utils.weak import WeakIdKeyDictionary
from transformers import BatchEncoding, BatchFeature

from whence_server.training.recording.tagging import TaggedBatch, TaggedCollator, tag
from whence_server.training.recording.wrapping import wrap

IDS_KEY = "whence_example_ids"
"""Key under which a batch carries its examples' ids through accelerate's loader."""

_CARRY = (dict, OrderedDict, UserDict, BatchEncoding, BatchFeature)
"""Types of batches, without subclasses, that accept any key and keep it in copies."""


class ExampleIds:
    """Example ids of the batches that the training loop has fetched and not trained on yet.

    Attributes:
        obstacle: reason why the loader's batches have no ids; "" if none is known.
    """

    def __init__(self) -> None:
        self.obstacle = "the training loop does not use the data loader that the trainer made"
        self._fetched: list[tuple[Any, torch.Tensor | None]] = []
        self._by_tensor: Any = WeakIdKeyDictionary()
        """Ids of the batch that a tensor is part of; None if it is part of several."""
        self._dataset: Any = None
        self._is_carried = False
        self._is_fetching = False

    @contextmanager
    def follow_passes(self) -> Iterator[None]:
        """Follow the passes that are begun meanwhile over the dataset of a loader (`follow`)."""
        restore = wrap(DataLoader, "_get_iterator", self._begin_pass)
        try:
            yield
        finally:
            restore()
            self._fetched.clear()
            self._dataset = None

    def follow(self, loader: Any) -> None:
        """Begin to follow a loader, and any other that reads its dataset, as after resuming."""
        base = getattr(loader, "base_dataloader", loader)
        self.obstacle = _find_obstacle(base)
        self._dataset = None if self.obstacle else _find_dataset(base)
        by_accelerate = type(loader) in (DataLoaderShard, DataLoaderDispatcher)
        self._is_carried = by_accelerate and type(base) is DataLoader

    def fetch(self, get: Callable[..., Any], batches: Iterator[Any], *args: Any, **kw: Any) -> Any:
        """Fetch a step's batches by the trainer's own `get_batch_samples`, without their ids."""
        self._fetched.clear()
        return get(_Fetching(batches, self), *args, **kw)

    def pop(self, batch: Any) -> torch.Tensor | None:
        """Remove and return the ids of a fetched batch, shape (B,); None if it has none."""
        for number, (fetched, ids) in enumerate(self._fetched):
            if fetched is batch:
                del self._fetched[: number + 1]
                return ids
        return None

    def explain_missing(self, batch: Any) -> str:
        """Return the reason why a batch has no ids."""
        if self.obstacle:
            return self.obstacle
        if not isinstance(batch, Mapping):
            return (
                f"the data collator gives a {_name_type(batch)}, "
                "and only a dictionary can carry ids"
            )
        return (
            f"a {_name_type(batch)} came without them: its sampler yields no numbers, "
            "or the batch was rebuilt after the data loader or by it"
        )

    def take(self, batches: Iterator[Any]) -> Any:
        """Return the next batch, and keep its ids."""
        before, self._is_fetching = self._is_fetching, True
        try:
            batch = next(batches)
        finally:
            self._is_fetching = before
        ids = batch.pop(IDS_KEY, None) if type(batch) in _CARRY else None
        self._fetched.append((batch, self._find_by_tensors(batch) if ids is None else ids))
        return batch

    def _begin_pass(self, begin: Callable[[Any], Any], loader: Any) -> Any:
        """Begin a pass of a data loader, with ids if it reads the followed dataset."""
        if (
            self._dataset is None
            or _find_dataset(loader) is not self._dataset
            or _find_obstacle(loader)
        ):
            return begin(loader)
        with _tag(loader):
            batches = begin(loader)
        wrap(batches, "_next_data", lambda get: self._untag(get()))
        return batches

    def _untag(self, data: Any) -> Any:
        if not isinstance(data, TaggedBatch):
            return data
        batch, example_ids = data
        if not isinstance(batch, Mapping) or None in example_ids:
            return batch
        ids = torch.tensor(example_ids, dtype=torch.int64)
        for tensor in _list_tensors(batch):
            self._by_tensor[tensor] = None if tensor in self._by_tensor else ids
        if not (self._is_carried and self._is_fetching and type(batch) in _CARRY):
            return batch
        # Not into the collator's own dictionary, which it may keep.
        carries: Any = copy(batch)
        carries[IDS_KEY] = ids
        return carries

    def _find_by_tensors(self, batch: Any) -> torch.Tensor | None:
        if not isinstance(batch, Mapping):
            return None
        found = [self._by_tensor.get(tensor) for tensor in _list_tensors(batch)]
        known = [ids for ids in found if ids is not None]
        return known[0] if known and all(ids is known[0] for ids in known) else None


class _Fetching:
    """Iterator of a training loop over batches without their ids."""

    def __init__(self, batches: Iterator[Any], ids: ExampleIds) -> None:
        self._batches, self._ids = batches, ids

    def __iter__(self) -> "_Fetching":
        return self

    def __next__(self) -> Any:
        return self._ids.take(self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


@contextmanager
def _tag(loader: Any) -> Iterator[None]:
    """Give a loader a tagged dataset and collator while torch begins a pass."""
    dataset, collate = loader.dataset, loader.collate_fn
    if isinstance(dataset, IterableDatasetShard):
        share = copy(dataset)
        share.dataset = tag(dataset.dataset)
    else:
        share = tag(dataset)
    # A data loader does not allow these attributes to be set.
    vars(loader).update(dataset=share, collate_fn=TaggedCollator(collate))
    try:
        yield
    finally:
        vars(loader).update(dataset=dataset, collate_fn=collate)


def _list_tensors(batch: Mapping[Any, Any]) -> list[torch.Tensor]:
    return [value for value in batch.values() if isinstance(value, torch.Tensor)]


def find_read_dataset(trainer: Any, loader: Any) -> Any:
    """Return the dataset whose rows a loader reads: the trainer's, or another one."""
    base = getattr(loader, "base_dataloader", loader)
    if not isinstance(base, DataLoader):
        return trainer.train_dataset
    read = _find_dataset(base)
    return trainer.train_dataset if _same_rows(trainer.train_dataset, read) else read


def _same_rows(one: Any, other: Any) -> bool:
    """Return whether each number means the same row in both datasets."""
    if one is other:
        return True
    if not (_is_of_datasets(one, "Dataset") and _is_of_datasets(other, "Dataset")):
        # Streams are known by the order of arrival alone.
        return isinstance(one, IterableDataset) and isinstance(other, IterableDataset)
    # Removing columns keeps the table of rows; shuffling, selecting and filtering do not.
    return len(one) == len(other) and _find_order(one) == _find_order(other)


def _find_order(dataset: Any) -> Any:
    """Return the row numbers in the underlying table; None for 0, 1, 2 and so on."""
    indices = dataset._indices  # noqa: SLF001 - nowhere else
    return None if indices is None else indices.table


def _find_dataset(base: Any) -> Any:
    dataset = base.dataset
    return dataset.dataset if isinstance(dataset, IterableDatasetShard) else dataset


def _find_obstacle(base: Any) -> str:
    """Return the reason why a loader's batches cannot have ids; "" if they can."""
    if not isinstance(base, DataLoader):
        return f"the data loader is a {_name_type(base)}, and no torch DataLoader"
    if not base._auto_collation:  # noqa: SLF001 - nowhere else
        return "the dataset gives whole batches, whose examples have no numbers"
    if isinstance(base.dataset, IterDataPipe | MapDataPipe):
        return f"the dataset is a {_name_type(base.dataset)}, a data pipe, which torch itself seeds"
    if getattr(base.dataset, "_distributed", None) is not None:
        return "each process reads its own share of a datasets.IterableDataset"
    return ""


def _is_of_datasets(dataset: Any, kind: str) -> bool:
    """Return whether a dataset is an instance of a class of `datasets`, if that is loaded."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(dataset, getattr(datasets, kind))


def _name_type(value: Any) -> str:
    return type(value).__name__
