"""Tagged datasets behave like the original for other code."""

import pickle
from typing import Any

import pytest
import torch
from tiny_training import Rows, RowStream
from torch.utils.data import DataLoader, IterableDataset

from whence_server.training.recording.tagging import (
    Tagged,
    TaggedBatch,
    TaggedCollator,
    TaggedTogether,
    tag,
)


def test_attributes_are_read_and_written_through() -> None:
    rows = Rows(5)
    dataset = tag(rows)
    assert dataset.num_rows == len(dataset) == 5
    dataset.num_rows = 3
    assert rows.num_rows == len(dataset) == 3
    with pytest.raises(AttributeError):
        dataset.nothing  # noqa: B018


@pytest.mark.parametrize("dataset", [Rows(0), Rows(4), RowStream(4)])
def test_tagged_dataset_can_be_pickled(dataset: Any) -> None:
    copy = pickle.loads(pickle.dumps(tag(dataset)))
    assert copy.num_rows == dataset.num_rows
    assert [item.example_id for item in copy] == list(range(dataset.num_rows))


def test_a_stream_has_a_length_where_it_had_one() -> None:
    class Sized(RowStream):
        def __len__(self) -> int:
            return self.num_rows

    assert len(tag(Sized(7))) == 7
    assert isinstance(tag(RowStream(7)), IterableDataset)
    with pytest.raises(TypeError):
        len(tag(RowStream(7)))


def test_items_are_fetched_in_batches_if_the_dataset_supports_it() -> None:
    class Together(Rows):
        def __getitems__(self, indices: list[int]) -> list[str]:
            return [f"item {index}" for index in indices]

    together = tag(Together(5)).__getitems__([3, 1])
    assert together == TaggedTogether([3, 1], ["item 3", "item 1"])
    assert not tag(Rows(5)).__getitems__


def test_items_with_a_non_numeric_index_have_no_id() -> None:
    letters = {"one": "a", 1.5: "b", -1: "c"}
    for index, letter in letters.items():
        assert tag(letters)[index] == Tagged(None, letter)
    assert tag(["a", "b"])[torch.tensor(1)] == Tagged(1, "b")
    batch = TaggedCollator(lambda items: {"letters": items})([Tagged(None, "a"), Tagged(3, "b")])
    assert batch == TaggedBatch({"letters": ["a", "b"]}, [None, 3])


def test_ids_of_a_stream_read_by_workers_are_unique_and_the_same_again() -> None:
    def ids() -> list[int]:
        collate = TaggedCollator(lambda items: {"n": torch.tensor([i["comment"] for i in items])})
        loader = DataLoader(tag(RowStream(10)), 2, num_workers=2, collate_fn=collate)
        batches = [(ids, batch["n"].tolist()) for batch, ids in loader]
        # The stream deals rows out in turns, so here the id is the row's number.
        assert all(tagged_ids == numbers for tagged_ids, numbers in batches)
        return [number for tagged_ids, _ in batches for number in tagged_ids]

    first = ids()
    assert sorted(first) == list(range(10))
    assert ids() == first
