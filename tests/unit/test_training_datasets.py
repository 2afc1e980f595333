"""Example ids for all kinds of datasets, hidden from the model."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_training import (
    Rows,
    RowStream,
    SeenRows,
    events_in,
    item,
    row,
    same_bits,
    steps_in,
    trainer_of,
    weights_of,
)
from torch.utils.data import Dataset
from transformers import Trainer

from whence_server.training import Document, DocumentedExamples, Piece, record

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_stream_with_a_length_is_a_stream(tmp_path: Path) -> None:
    class Sized(RowStream):
        def __len__(self) -> int:
            return self.num_rows

        def __getitem__(self, index: int) -> Any:
            raise NotImplementedError

    trainer = trainer_of(tmp_path, Sized(8), max_steps=1)
    record(trainer)
    trainer.train()
    dataset = events_in(tmp_path)[1].dataset
    assert (dataset.kind, dataset.num_examples) == ("stream", 8)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["Dataset", "IterableDataset"])
def test_unused_columns_of_a_hugging_face_dataset_are_removed_and_ids_are_not(
    kind: str, workers: int, tmp_path: Path
) -> None:
    rows = [row(number).tolist() for number in range(22)]
    columns = {"input_ids": rows, "labels": rows, "comment": [f"row {n}" for n in range(22)]}
    dataset: Any = datasets.Dataset.from_dict(columns)
    if kind == "IterableDataset":
        dataset = dataset.to_iterable_dataset(num_shards=2)
    given: list[set[str]] = []

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        given.extend(set(item) for item in items)
        return {name: torch.tensor([item[name] for item in items]) for name in items[0]}

    arguments = {"max_steps": 9, "dataloader_num_workers": workers, "data_collator": collate}
    untracked = trainer_of(tmp_path / "untracked", dataset, **arguments)
    untracked.train()
    tracked = trainer_of(tmp_path / "run", dataset, **arguments)
    record(tracked)
    seen = SeenRows(tracked.model)
    tracked.train()
    assert same_bits(weights_of(untracked), weights_of(tracked))
    steps = steps_in(tmp_path / "run")
    assert len(steps) == len(seen.passes) == 9
    if kind == "Dataset" or not workers:
        # The stream's rows come in the order of their numbers where one process reads it.
        assert [list(s.ranks[0].example_ids) for s in steps] == seen.passes
    else:
        first_pass = [number for s in steps[:6] for number in s.ranks[0].example_ids]
        assert sorted(first_pass) == sorted(number for ids in seen.passes[:6] for number in ids)
    if not workers:
        assert {frozenset(columns) for columns in given} == {frozenset({"input_ids", "labels"})}
    assert events_in(tmp_path / "run")[1].dataset.kind == (
        "examples" if kind == "Dataset" else "stream"
    )
    assert "comment" in next(iter(tracked.train_dataset))


class Triples(Dataset[Any]):
    """Items that are no dictionaries, taken several at a time, and an attribute of its own."""

    source = "nowhere"

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("taken one by one")

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(index, item(index)["input_ids"]) for index in indices]


def test_items_that_are_no_dictionaries_are_recorded_too(tmp_path: Path) -> None:
    class Asks(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            assert isinstance(train_dataset, Triples)
            return super()._get_train_sampler(train_dataset)

    def collate(items: list[Any]) -> dict[str, torch.Tensor]:
        ids = torch.stack([ids for _, ids in items])
        return {"input_ids": ids, "labels": ids}

    plain = trainer_of(tmp_path)
    trainer = Asks(
        model=plain.model, args=plain.args, train_dataset=Triples(), data_collator=collate
    )
    record(trainer)
    seen = SeenRows(trainer.model)
    trainer.train()
    ids = [list(step.ranks[0].example_ids) for step in steps_in(tmp_path)]
    assert ids == seen.passes
    # Outside of a training, and to everybody else, the trainer is what it was.
    assert trainer.train_dataset.source == "nowhere"
    trainer.is_in_train = False
    assert set(next(iter(trainer.get_train_dataloader()))) == {"input_ids", "labels"}


def test_padding_does_not_count(tmp_path: Path) -> None:
    class Padded(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            mask = torch.ones(8, dtype=torch.int64)
            mask[5:] = 0
            return item(index) | {"attention_mask": mask}

    trainer = trainer_of(tmp_path, Padded(4), max_steps=1)
    record(trainer)
    trainer.train()
    assert steps_in(tmp_path)[0].num_tokens == 20


def test_known_documents_are_recorded(tmp_path: Path) -> None:
    documents = DocumentedExamples(
        documents=[Document("/a", 0, 9, "00" * 32), Document("/b", 3, 7, "11" * 32)],
        pieces=[[Piece(0, 0, 9)], [Piece(0, 5, 9), Piece(1, 0, 4)], [], [Piece(1, 1, 2)]],
    )
    trainer = trainer_of(tmp_path, Rows(4), max_steps=1)
    record(trainer, documents=documents)
    trainer.train()
    dataset, read, examples = (e for e in events_in(tmp_path)[1:4])
    assert dataset.dataset.kind == "documents"
    assert dataset.dataset.num_documents == 2
    assert len(dataset.dataset.merkle_root) == 64
    assert [document.source for document in read.documents.documents] == ["/a", "/b"]
    assert list(examples.examples.num_pieces) == [1, 2, 0, 1]
    assert list(examples.examples.document_indices) == [0, 0, 1, 1]
    assert list(examples.examples.begin_bytes) == [0, 5, 0, 1]
    assert list(examples.examples.end_bytes) == [9, 9, 4, 2]
