"""Datasets and collators that carry each example's id to the batch.

The sampler and the order of everything stay as they are: a wrapped sampler would change the
training, and runs ahead of it.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch.utils.data import Dataset, IterableDataset, get_worker_info


class Tagged(NamedTuple):
    """A dataset's item, whatever it is, with its id."""

    example_id: int | None
    """Id of the example; None if the sampler's index is not a number."""
    feature: Any


class TaggedTogether(NamedTuple):
    """Several items that their dataset gave at once, in whatever form, with their ids."""

    example_ids: list[int | None]
    features: Any


def tag(dataset: Any) -> Any:
    """Wrap a dataset so that it returns `Tagged` items; its other attributes are passed through.

    An item's id is its index, and in an iterable dataset its place in the order of arrival, from
    0 in each pass. Where several workers read an iterable dataset, each counts what it reads
    itself: worker w of W gives its n-th item the id n * W + w.
    """
    if not isinstance(dataset, IterableDataset):
        return _TaggedMap(dataset)
    return _SizedTaggedStream(dataset) if hasattr(dataset, "__len__") else _TaggedStream(dataset)


class TaggedBatch(NamedTuple):
    """A batch, whatever it is, with the ids of its examples."""

    batch: Any
    example_ids: list[int | None]


class TaggedCollator:
    """Collator for tagged items; the original collator makes the batch."""

    def __init__(self, collator: Callable[[Any], Any]) -> None:
        self.collator = collator

    def __call__(self, items: Any) -> TaggedBatch:
        """Return the batch of the items, with their ids."""
        if isinstance(items, TaggedTogether):
            return TaggedBatch(self.collator(items.features), items.example_ids)
        batch = self.collator([item.feature for item in items])
        return TaggedBatch(batch, [item.example_id for item in items])

    def __getattr__(self, name: str) -> Any:
        # A copy in the making has no collator yet.
        if name == "collator" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self.collator, name)


class _Wrapper:
    """Wrapper of a dataset that passes every attribute through."""

    whence_dataset: Any

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "whence_dataset", dataset)

    def __getattr__(self, name: str) -> Any:
        # A copy in the making has no dataset yet, and dunders are looked up on the class.
        if name == "whence_dataset" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)
        return getattr(self.whence_dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.whence_dataset, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.whence_dataset,)


class _TaggedMap(_Wrapper, Dataset[Tagged]):
    def __len__(self) -> int:
        return len(self.whence_dataset)

    def __getitem__(self, index: Any) -> Tagged:
        return Tagged(_convert_to_id(index), self.whence_dataset[index])

    @property
    def __getitems__(self) -> Callable[[list[Any]], TaggedTogether] | None:
        # The data loader asks whether there is one, and calls it with the batch's indices.
        inner = getattr(self.whence_dataset, "__getitems__", None)
        if not inner:
            return None
        return lambda indices: TaggedTogether(list(map(_convert_to_id, indices)), inner(indices))


def _convert_to_id(index: Any) -> int | None:
    try:
        number = operator.index(index)
    except TypeError:
        return None
    return number if 0 <= number < 1 << 63 else None


class _TaggedStream(_Wrapper, IterableDataset[Tagged]):
    def __iter__(self) -> Iterator[Tagged]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for number, feature in enumerate(self.whence_dataset):
            yield Tagged(first + number * stride, feature)


class _SizedTaggedStream(_TaggedStream):
    def __len__(self) -> int:
        return len(self.whence_dataset)
