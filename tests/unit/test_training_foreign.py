"""Other people's Trainers, loaders and collators: on record by one line, and the same to the bit.

The oracle is the same training without a record.
"""

import random
from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_training import (
    SeenRows,
    events_in,
    item,
    row,
    same_bits,
    steps_in,
    trainer_of,
    weights_of,
)
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import Trainer, TrainerCallback, default_data_collator

from whence_server.training import Document, DocumentedExamples, Piece, record

pytestmark = pytest.mark.usefixtures("one_thread")


def gaps_in(directory: Path) -> dict[str, str]:
    return {e.gap.subject: e.gap.reason for e in events_in(directory) if e.HasField("gap")}


def ids_in(directory: Path) -> list[list[int]]:
    return [list(step.ranks[0].example_ids) for step in steps_in(directory)]


class Plain(Dataset[Any]):
    """Rows with nothing in them but what the model takes."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": row(int(index)), "labels": row(int(index))}


class Columns(Plain):
    """Collator that returns a dictionary with one column for each row of the batch."""

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:
        rows = torch.stack([row(index) for index in indices])
        return {"input_ids": rows, "labels": rows, "a": None, "b": None}


class ByName(Plain):
    def __getitem__(self, name: Any) -> dict[str, Any]:
        return super().__getitem__(int(str(name).removeprefix("row ")))


class Batches(IterableDataset[Any]):
    """Dataset that returns whole batches."""

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for first in range(0, 20, 4):
            rows = torch.stack([row(first + n) for n in range(4)])
            yield {"input_ids": rows, "labels": rows}


@dataclass
class Sample:
    ids: torch.Tensor


class Samples(Plain):
    def __getitem__(self, index: int) -> Any:
        return Sample(row(index))


class Texts(Plain):
    def __getitem__(self, index: int) -> Any:
        return " ".join(map(str, row(index).tolist()))


def of_samples(items: list[Any]) -> dict[str, torch.Tensor]:
    assert type(items) is list
    assert all(type(it) is Sample for it in items)
    ids = torch.stack([it.ids for it in items])
    return {"input_ids": ids, "labels": ids}


def of_texts(items: list[Any]) -> dict[str, torch.Tensor]:
    assert all(type(it) is str for it in items)
    ids = torch.tensor([list(map(int, it.split())) for it in items])
    return {"input_ids": ids, "labels": ids}


def of_columns(columns: Any) -> dict[str, torch.Tensor]:
    assert type(columns) is dict
    return {name: columns[name] for name in ("input_ids", "labels")}


def as_pair(items: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.stack([it["input_ids"] for it in items])
    return ids, ids


class OwnLoader(Trainer):
    """Loader without Accelerate, with torch's default collator."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=4)


def only_columns(batch: Any) -> Any:
    if set(batch) != {"input_ids", "labels"}:
        raise ValueError(f"unexpected columns {sorted(batch)}")
    return batch


class Strict(DataLoader[Any]):
    """Looks at every batch, and names its base by its own type."""

    def __iter__(self) -> Any:
        for batch in super(type(self), self).__iter__():
            yield only_columns(batch)


class ByItself(DataLoader[Any]):
    """Loader that builds batches from its dataset without torch's iterator."""

    def __iter__(self) -> Any:
        if not isinstance(self.dataset, Plain):
            raise TypeError(f"a dataset of Plain is needed, not a {type(self.dataset).__name__}")
        for first in range(0, len(self.dataset), 4):
            yield self.collate_fn([self.dataset[first + n] for n in range(4)])


class StrictLoader(Trainer):
    def get_train_dataloader(self) -> DataLoader[Any]:
        return Strict(self.train_dataset, batch_size=4)


class LoaderByItself(Trainer):
    def get_train_dataloader(self) -> DataLoader[Any]:
        return ByItself(self.train_dataset, batch_size=4)


class StrictBatch(UserDict[str, torch.Tensor]):
    """Batch type with a fixed set of columns, also when Accelerate copies it."""

    def __init__(self, columns: Any) -> None:
        super().__init__(only_columns(columns))


def as_strict_batch(items: list[Any]) -> StrictBatch:
    return StrictBatch(default_data_collator(items))


def as_one_buffer(items: list[Any]) -> dict[str, torch.Tensor]:
    """A tensor that is part of every batch does not identify a batch."""
    ids = torch.stack([it["input_ids"] for it in items])
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": ALL_ONES[: len(ids)]}


class Shuffled(Trainer):
    def get_train_dataloader(self) -> Any:
        loader: Any = DataLoader(
            self.train_dataset,
            batch_size=4,
            shuffle=True,
            collate_fn=self.data_collator,
            num_workers=2,
        )
        return self.accelerator.prepare(loader)


class Named(Trainer):
    def get_train_dataloader(self) -> Any:
        names: Any = [f"row {n}" for n in range(20)]
        return DataLoader(self.train_dataset, batch_size=4, sampler=names)


class WholeBatches(Trainer):
    def get_train_dataloader(self) -> Any:
        return DataLoader(self.train_dataset, batch_size=None)


class AList(Trainer):
    def get_train_dataloader(self) -> Any:
        return [self.data_collator([item(n) for n in range(i, i + 4)]) for i in range(0, 20, 4)]


class OfPairs(Trainer):
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        assert type(inputs) in {tuple, list}
        return model(input_ids=inputs[0], labels=inputs[1]).loss

    def floating_point_ops(self, inputs: Any) -> int:
        return 0


class Mapped(Trainer):
    """Loader that copies its batches."""

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        assert all(set(batch) == {"input_ids", "labels"} for batch in batches)
        return [dict(batch) for batch in batches], num_items


def mean_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    del num_items_in_batch
    return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())


class OwnModel(torch.nn.Module):
    """Has a mask of its own, and methods that are named as transformers' and are not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table = torch.nn.Parameter(torch.randn(64, 64))

    def get_input_embeddings(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table[ids]

    def get_output_embeddings(self) -> torch.nn.Parameter:
        return self.table

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: Any = None
    ) -> dict[str, torch.Tensor]:
        del attention_mask
        scores = self.get_input_embeddings(input_ids)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
        return {"loss": loss}


def with_mask(mask: Any) -> Any:
    return lambda items: default_data_collator(items) | {"attention_mask": mask}


@pytest.mark.parametrize(
    ("mask", "num_tokens"),
    [
        (torch.full((8, 8), float("-inf")).triu(1), 0),
        (torch.full((8, 8), -1e4), 0),
        (torch.full((8, 8), float("nan")), 0),
        (torch.ones(4, 8, dtype=torch.complex64), 0),
        (torch.eye(8).to_sparse(), 0),
        (torch.ones(4, 8), 32),
        (torch.ones(4, 8, dtype=torch.bool), 32),
        # The number of its text, of several that share a row.
        (torch.tensor([[1, 1, 1, 2, 2, 3, 3, 0]]), 7),
    ],
)
def test_a_model_and_a_mask_of_another_kind_are_recorded(
    mask: torch.Tensor, num_tokens: int, tmp_path: Path
) -> None:
    trained = []
    for is_recorded in (False, True):
        plain = trainer_of(tmp_path, Plain(), max_steps=2)
        trainer = Trainer(
            model=OwnModel(),
            args=plain.args,
            train_dataset=Plain(),
            data_collator=with_mask(mask),
        )
        if is_recorded:
            record(trainer)
        trainer.train()
        trained.append(weights_of(trainer))
    assert same_bits(*trained)
    assert [step.num_tokens for step in steps_in(tmp_path)] == [num_tokens] * 2
    assert gaps_in(tmp_path) == {}
    assert events_in(tmp_path)[-1].attempt_finished.weights_digest


ALL_ONES = torch.ones(4, len(row(0)), dtype=torch.int64)
AS_IT_IS = {"remove_unused_columns": False}
SETTINGS: dict[str, tuple[type[Trainer], Any, dict[str, Any], str]] = {
    "own loader": (OwnLoader, Plain(), {}, ""),
    "own shuffled loader with workers": (Shuffled, Plain(), {}, ""),
    "columns": (Trainer, Columns(), {"data_collator": of_columns, **AS_IT_IS}, ""),
    "samples": (Trainer, Samples(), {"data_collator": of_samples}, ""),
    "texts": (Trainer, Texts(), {"data_collator": of_texts}, ""),
    "own loss": (Trainer, Plain(), {"compute_loss_func": mean_loss}, ""),
    "strict loader": (StrictLoader, Plain(), {}, ""),
    "strict batches": (Trainer, Plain(), {"data_collator": as_strict_batch}, ""),
    "a tensor of every batch": (OwnLoader, Plain(), {"data_collator": as_one_buffer}, ""),
    "loader by itself": (LoaderByItself, Plain(), {}, "the batch was rebuilt"),
    "taken by name": (Named, ByName(), {}, "its sampler yields no numbers"),
    "whole batches": (WholeBatches, Batches(), {"max_steps": 5}, "gives whole batches"),
    "a list": (AList, Plain(), {}, "the data loader is a list, and no torch DataLoader"),
    "pairs": (OfPairs, Plain(), {"data_collator": as_pair}, "the data collator gives a tuple"),
    "batches made anew": (Mapped, Plain(), {}, "the batch was rebuilt"),
}


def made(kind: type[Trainer], directory: Path, dataset: Any, settings: dict[str, Any]) -> Trainer:
    ours = {n: settings[n] for n in ("data_collator", "compute_loss_func") if n in settings}
    arguments = {n: value for n, value in settings.items() if n not in ours}
    plain = trainer_of(directory, dataset, num_train_epochs=1, **arguments)
    return kind(model=plain.model, args=plain.args, train_dataset=dataset, **ours)


@pytest.mark.parametrize("setting", SETTINGS)
def test_any_loader_trains_as_without_a_record(
    setting: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind, dataset, settings, obstacle = SETTINGS[setting]
    untracked = made(kind, tmp_path / "untracked", dataset, settings)
    untracked.train()
    tracked = made(kind, tmp_path / "run", dataset, settings)
    record(tracked)
    seen = SeenRows(tracked.model)
    tracked.train()
    assert same_bits(weights_of(untracked), weights_of(tracked))
    assert events_in(tmp_path / "run")[-1].attempt_finished.weights_digest
    if not obstacle:
        assert ids_in(tmp_path / "run") == seen.passes
        assert gaps_in(tmp_path / "run") == {}
    else:
        assert ids_in(tmp_path / "run") == [[]] * 5
        assert obstacle in gaps_in(tmp_path / "run")["example_ids"]
        assert caplog.text.count("not on record: example_ids") == 1
    assert len(steps_in(tmp_path / "run")) == 5


class LooksAtTheData(TrainerCallback):
    """Goes through the training's own loader, as one that measures on it does."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for batch in kwargs["train_dataloader"]:
            self.keys |= set(batch)
            kwargs["model"](**batch)
        self.keys |= set(kwargs["train_dataloader"].dataset[0])


@pytest.mark.parametrize("kind", [Trainer, OwnLoader])
def test_a_callback_that_reads_the_loader_gets_its_batches_as_they_are(
    kind: type[Trainer], tmp_path: Path
) -> None:
    trainer = made(kind, tmp_path, Plain(), {})
    looks = LooksAtTheData()
    trainer.add_callback(looks)
    record(trainer)
    trainer.train()
    assert looks.keys == {"input_ids", "labels"}
    assert all(ids_in(tmp_path))


def test_the_loader_is_left_as_it_was(tmp_path: Path) -> None:
    dataset = Plain()
    loader = DataLoader(dataset, batch_size=4)
    collate = loader.collate_fn

    class Keeps(Trainer):
        def get_train_dataloader(self) -> Any:
            return loader

    trainer = made(Keeps, tmp_path, dataset, {})
    record(trainer)
    trainer.train()
    assert all(ids_in(tmp_path))
    assert type(loader) is DataLoader
    assert (loader.dataset, loader.collate_fn) == (dataset, collate)
    assert set(next(iter(loader))) == {"input_ids", "labels"}


def test_examples_that_the_documents_do_not_tell_of_have_no_ids(tmp_path: Path) -> None:
    """A number in another order would name the wrong text."""
    rows = [row(number).tolist() for number in range(8)]
    dataset = datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})
    documents = DocumentedExamples(
        documents=[Document("/a", 0, 8, "00" * 32)], pieces=[[Piece(0, n, n + 1)] for n in range(8)]
    )

    class InItsOwnOrder(Trainer):
        def get_train_dataloader(self) -> Any:
            shuffled = self.train_dataset.shuffle(seed=3).with_format("torch")
            return DataLoader(shuffled, batch_size=4)

    trainer = made(InItsOwnOrder, tmp_path, dataset, {})
    record(trainer, documents=documents)
    trainer.train()
    assert ids_in(tmp_path) == [[], []]
    assert "the documents tell of" in gaps_in(tmp_path)["example_ids"]


def sentences(number: int) -> datasets.Dataset:
    chance = random.Random(number)
    texts = [" ".join(chance.choices("abcdefgh", k=5)) for _ in range(12)]
    return datasets.Dataset.from_dict(
        {"first": texts, "second": texts[::-1], "score": [chance.random() for _ in texts]}
    )


@pytest.mark.parametrize(
    "data", [sentences(0), datasets.DatasetDict(one=sentences(1), two=sentences(2))]
)
def test_sentence_transformers_are_recorded(data: Any, tmp_path: Path, tiny_model: Any) -> None:
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import modules as models
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    source = str(tiny_model("gpt2"))

    def trainer(directory: Path) -> Any:
        torch.manual_seed(0)
        words: Any = models.Transformer(source, max_seq_length=32)
        words.tokenizer.pad_token = words.tokenizer.eos_token
        model = SentenceTransformer(
            modules=[words, models.Pooling(words.get_embedding_dimension())], device="cpu"
        )
        arguments = SentenceTransformerTrainingArguments(
            output_dir=str(directory),
            per_device_train_batch_size=4,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        return SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data, loss=CosineSimilarityLoss(model)
        )

    untracked = trainer(tmp_path / "untracked")
    untracked.train()
    tracked = trainer(tmp_path / "run")
    with record(tracked):
        tracked.train()
        tracked.save_model(str(tmp_path / "saved"))
    assert same_bits(weights_of(untracked), weights_of(tracked))
    num_rows = 12 if isinstance(data, datasets.Dataset) else 24
    assert sorted(number for ids in ids_in(tmp_path / "run") for number in ids) == list(
        range(num_rows)
    )
    assert events_in(tmp_path / "run")[1].dataset.num_examples == num_rows
    assert gaps_in(tmp_path / "run") == {}
    assert all(step.num_tokens for step in steps_in(tmp_path / "run"))
    saved = events_in(tmp_path / "saved")[-2].checkpoint
    assert {"modules.json", "1_Pooling/config.json"} <= {file.path for file in saved.files}
