"""Trainings of a moment: every row of the data is unique, dropout is on, batches are uneven."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from whence.v1.training_pb2 import TrainingEvent
from whence_server.lineage.reader import RECORD_NAME, RecordReader

VOCABULARY = 64
ROW_LENGTH = 8


def row(index: int) -> torch.Tensor:
    """Token ids that begin with the row's own number."""
    rest = torch.randint(
        VOCABULARY, (ROW_LENGTH - 2,), generator=torch.Generator().manual_seed(index)
    )
    return torch.cat([torch.tensor([index // VOCABULARY, index % VOCABULARY]), rest])


def number_of(ids: torch.Tensor) -> int:
    """Number of the row."""
    return int(ids[0]) * VOCABULARY + int(ids[1])


def item(index: int) -> dict[str, Any]:
    # A column that the model does not take, as real data has.
    return {"input_ids": row(index), "labels": row(index), "comment": index}


class Rows(Dataset[dict[str, Any]]):
    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= self.num_rows:
            raise IndexError(index)
        return item(index)


class RowStream(IterableDataset[dict[str, Any]]):
    """Each worker gives its own share, in turns."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return map(item, range(first, self.num_rows, stride))


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(11)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=16,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            loss_type="ForCausalLM",
        )
    )


class SeenRows:
    """Inputs of the model by forward pass: the oracle for example ids."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.passes: list[list[int]] = []
        model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, model: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if model.training:
            self.passes.append([number_of(ids) for ids in kwargs["input_ids"]])


class Stop(TrainerCallback):
    """Ends a training as a crash would."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise self.error


def trainer_of(
    directory: Path,
    dataset: Any = None,
    *,
    model: Any = None,
    callbacks: Any = None,
    eval_dataset: Any = None,
    data_collator: Any = None,
    **arguments: Any,
) -> Trainer:
    defaults: dict[str, Any] = {
        "output_dir": str(directory),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return Trainer(
        model=model or tiny_gpt2(),
        args=TrainingArguments(**defaults | arguments),
        train_dataset=Rows(22) if dataset is None else dataset,
        callbacks=callbacks,
        eval_dataset=eval_dataset,
        data_collator=data_collator,
    )


def events_in(directory: Path) -> list[TrainingEvent]:
    return [recorded.event for recorded in RecordReader(directory / RECORD_NAME).read_all()]


def steps_in(directory: Path) -> list[Any]:
    return [e.step for e in events_in(directory) if e.WhichOneof("event") == "step"]


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
