"""The ids of the examples that a trainer's data loader reads, whatever made it.

The loader keeps its class, its dataset and its collator. What torch makes of them to read a pass
gets tagged ones, and gives batches as they are without a record. Their ids are kept beside them: by
the tensors that a batch is made of, so that they are found again after a loader's own code, and in
the batch where nothing but accelerate's own loader lies between here and the training's loop.
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

from whence_server.training.recording.tagging import TaggedBatch, TaggedCollator, tagged
from whence_server.training.recording.wrapping import wrap

IDS_KEY = "whence_example_ids"
"""Where a batch carries its examples' ids through accelerate's loader."""

_CARRY = (dict, OrderedDict, UserDict, BatchEncoding, BatchFeature)
"""Types of batches, no others below them, that take any key and keep it when they are copied."""


class ExampleIds:
    """The ids of the batches that a training's loop has fetched and not trained on yet.

    Attributes:
        obstacle: why the loader's batches have no ids; "" where they do, as far as is known.
    """

    def __init__(self) -> None:
        self.obstacle = "the trainer's data loader is not asked for by its own training loop"
        self._fetched: list[tuple[Any, torch.Tensor | None]] = []
        self._by_tensor: Any = WeakIdKeyDictionary()
        """The ids of the batch that a tensor is part of; None where it is part of several."""
        self._dataset: Any = None
        self._is_carried = False
        self._is_fetching = False

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow the passes that are begun meanwhile over the dataset of a loader (`follow`)."""
        restore = wrap(DataLoader, "_get_iterator", self._begun)
        try:
            yield
        finally:
            restore()
            self._fetched.clear()
            self._dataset = None

    def follow(self, loader: Any) -> None:
        """Begin to follow a loader, and any other that reads its dataset, as after resuming."""
        base = getattr(loader, "base_dataloader", loader)
        self.obstacle = _obstacle(base)
        self._dataset = None if self.obstacle else _dataset_of(base)
        by_accelerate = type(loader) in (DataLoaderShard, DataLoaderDispatcher)
        self._is_carried = by_accelerate and type(base) is DataLoader

    def fetch(self, get: Callable[..., Any], batches: Iterator[Any], *args: Any, **kw: Any) -> Any:
        """Fetch a step's batches by the trainer's own `get_batch_samples`, without their ids."""
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
        if not isinstance(batch, Mapping):
            return f"the data collator gives a {_name(batch)}, and only a dictionary can carry ids"
        return (
            f"a {_name(batch)} came without them: its sampler takes examples by something else "
            "than a number, or it was made anew on its way from the data loader, or by that itself"
        )

    def take(self, batches: Iterator[Any]) -> Any:
        """The next batch, its ids taken out and kept."""
        before, self._is_fetching = self._is_fetching, True
        try:
            batch = next(batches)
        finally:
            self._is_fetching = before
        ids = batch.pop(IDS_KEY, None) if type(batch) in _CARRY else None
        self._fetched.append((batch, self._of_tensors(batch) if ids is None else ids))
        return batch

    def _begun(self, begin: Callable[[Any], Any], loader: Any) -> Any:
        """A pass of some data loader, with ids where it is over the dataset that is followed."""
        if self._dataset is None or _dataset_of(loader) is not self._dataset or _obstacle(loader):
            return begin(loader)
        with _tagged(loader):
            batches = begin(loader)
        wrap(batches, "_next_data", lambda get: self._untagged(get()))
        return batches

    def _untagged(self, data: Any) -> Any:
        if not isinstance(data, TaggedBatch):
            return data
        batch, example_ids = data
        if not isinstance(batch, Mapping) or None in example_ids:
            return batch
        ids = torch.tensor(example_ids, dtype=torch.int64)
        for tensor in _tensors(batch):
            self._by_tensor[tensor] = None if tensor in self._by_tensor else ids
        if not (self._is_carried and self._is_fetching and type(batch) in _CARRY):
            return batch
        # Not into the collator's own dictionary, which it may keep.
        carries: Any = copy(batch)
        carries[IDS_KEY] = ids
        return carries

    def _of_tensors(self, batch: Any) -> torch.Tensor | None:
        if not isinstance(batch, Mapping):
            return None
        found = [self._by_tensor.get(tensor) for tensor in _tensors(batch)]
        known = [ids for ids in found if ids is not None]
        return known[0] if known and all(ids is known[0] for ids in known) else None


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


@contextmanager
def _tagged(loader: Any) -> Iterator[None]:
    """Return a loader a tagged dataset and collator, while torch begins a pass with them."""
    dataset, collate = loader.dataset, loader.collate_fn
    if isinstance(dataset, IterableDatasetShard):
        share = copy(dataset)
        share.dataset = tagged(dataset.dataset)
    else:
        share = tagged(dataset)
    # A data loader lets nobody set these the usual way.
    vars(loader).update(dataset=share, collate_fn=TaggedCollator(collate))
    try:
        yield
    finally:
        vars(loader).update(dataset=dataset, collate_fn=collate)


def _tensors(batch: Mapping[Any, Any]) -> list[torch.Tensor]:
    return [value for value in batch.values() if isinstance(value, torch.Tensor)]


def read_by(trainer: Any, loader: Any) -> Any:
    """The dataset whose rows a loader reads: the trainer's, or another one."""
    base = getattr(loader, "base_dataloader", loader)
    if not isinstance(base, DataLoader):
        return trainer.train_dataset
    read = _dataset_of(base)
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
    if isinstance(base.dataset, IterDataPipe | MapDataPipe):
        return f"the dataset is a {_name(base.dataset)}, a data pipe, which torch itself seeds"
    if getattr(base.dataset, "_distributed", None) is not None:
        return "each process reads its own share of a datasets.IterableDataset"
    return ""


def _is_of_datasets(dataset: Any, kind: str) -> bool:
    """Whether it is of one of the classes of `datasets`, which need not be installed."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(dataset, getattr(datasets, kind))


def _name(value: Any) -> str:
    return type(value).__name__
