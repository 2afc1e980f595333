"""Any Trainer on record: what it says is what was done, and not one bit of it is changed."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import (
    Rows,
    RowStream,
    SeenRows,
    events_in,
    same_bits,
    steps_in,
    tiny_gpt2,
    trainer_of,
    weights_of,
)
from transformers import GPT2LMHeadModel, TrainerCallback

from whence.v1.training_pb2 import TrainingState
from whence_server.domain.errors import LineageError
from whence_server.engines.transformers.digests import digest_weights
from whence_server.training import DocumentedExamples, record

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (Rows(22), {}),
    "accumulation with a remainder": (Rows(22), {"gradient_accumulation_steps": 4}),
    "two workers": (Rows(22), {"dataloader_num_workers": 2}),
    "iterable": (RowStream(22), {"max_steps": 9}),
    "iterable, two workers, accumulation": (
        RowStream(22),
        {"max_steps": 5, "dataloader_num_workers": 2, "gradient_accumulation_steps": 2},
    ),
    "grouped by length": (Rows(22), {"train_sampling_strategy": "group_by_length"}),
    "no clipping, half precision": (Rows(22), {"max_grad_norm": 0.0, "bf16": True}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_the_same_to_the_bit_and_ids_are_the_rows_that_were_read(
    setting: str, tmp_path: Path
) -> None:
    dataset, arguments = SETTINGS[setting]
    untracked = trainer_of(tmp_path / "untracked", dataset, **arguments)
    untracked.train()
    tracked = trainer_of(tmp_path / "tracked", dataset, **arguments)
    record(tracked)
    seen = SeenRows(tracked.model)
    tracked.train()

    assert same_bits(weights_of(untracked), weights_of(tracked))
    steps = steps_in(tmp_path / "tracked")
    assert [step.step for step in steps] == list(range(1, tracked.state.global_step + 1))
    passes = iter(seen.passes)
    for step in steps:
        rank = step.ranks[0]
        read = [next(passes) for _ in range(rank.num_micro_batches)]
        assert list(rank.example_ids) == list(chain(*read))
        assert step.num_tokens == 8 * len(rank.example_ids)
    assert next(passes, None) is None
    assert steps[-1].num_tokens_seen == sum(step.num_tokens for step in steps)


def test_recorded_numbers_equal_the_trainers(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, gradient_accumulation_steps=2, warmup_steps=3, max_grad_norm=0.01
    )
    record(trainer)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    steps = steps_in(tmp_path)
    assert len(logged) == len(steps) == 6
    for entry, step in zip(logged, steps, strict=True):
        assert step.loss == pytest.approx(entry["loss"], abs=1e-6)
        assert step.grad_norm == pytest.approx(entry["grad_norm"])
        assert step.learning_rate == pytest.approx(entry["learning_rate"])
        assert step.epoch == pytest.approx(entry["epoch"])
        assert not step.skipped
        assert 0 < step.duration_ns <= step.elapsed_ns
    assert steps[0].grad_norm > 0.01


class WeightsByStep(TrainerCallback):
    """The oracle for norms: all weights after every step."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.weights = [self._of(model)]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.append(self._of(kwargs["model"]))

    @staticmethod
    def _of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {name: p.detach().double().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("stride", "dtype"), [(1, torch.float32), (4, torch.float32), (1, torch.bfloat16)]
)
def test_norms_are_those_of_the_weights(tmp_path: Path, stride: int, dtype: torch.dtype) -> None:
    model = tiny_gpt2().to(dtype)
    oracle = WeightsByStep(model)
    trainer = trainer_of(tmp_path, model=model, callbacks=[oracle])
    record(trainer, norm_stride=stride)
    trainer.train()
    groups = events_in(tmp_path)[0].started.groups
    assert [group.name for group in groups][:2] == ["embedding", "layer.0.attention"]
    measured = [step for step in steps_in(tmp_path) if step.update_norms]
    assert [step.step for step in measured] == list(range(stride, 13, stride))
    for step in measured:
        before, after = oracle.weights[step.step - 1 : step.step + 1]
        for group, update, weight in zip(groups, step.update_norms, step.weight_norms, strict=True):
            names = group.parameter_names
            change = sum((after[n] - before[n]).square().sum() for n in names) ** 0.5
            size = sum(after[n].square().sum() for n in names) ** 0.5
            assert update == pytest.approx(float(change), rel=1e-4)
            assert weight == pytest.approx(float(size), rel=1e-4)


def test_norms_can_be_left_out(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2)
    record(trainer, norm_stride=0)
    trainer.train()
    assert not any(step.update_norms or step.weight_norms for step in steps_in(tmp_path))


def test_run_entry_describes_model_arguments_and_environment(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, hub_token="secret-token")
    before = digest_weights(trainer.model.state_dict())
    record(trainer, name="a name")
    trainer.train()
    events = events_in(tmp_path)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", "dataset", "attempt_started", *["step"] * 12, "attempt_finished"]
    started, dataset, attempt = events[0].started, events[1].dataset, events[2].attempt_started
    assert (started.name, started.architecture) == ("a name", "GPT2LMHeadModel")
    assert started.num_parameters == trainer.model.num_parameters()
    assert sum(group.num_parameters for group in started.groups) == started.num_parameters
    assert started.initial_weights_digest == attempt.weights_digest == before
    assert started.num_planned_steps == 12
    assert '"n_embd": 16' in started.config_json
    assert '"learning_rate": 0.01' in started.arguments_json
    assert "secret-token" not in started.SerializeToString().decode("latin-1")
    assert (dataset.kind, dataset.num_examples) == ("examples", 22)
    assert attempt.versions["torch"] == str(torch.__version__)
    assert attempt.determinism["seed"] == "42"
    finished = events[-1].attempt_finished
    assert finished.state == TrainingState.TRAINING_STATE_COMPLETED
    assert finished.weights_digest == digest_weights(trainer.model.state_dict()) != before


@pytest.mark.parametrize("how", ["loaded", "changed", "new", "elsewhere"])
def test_a_parent_is_told_by_its_weights(how: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_gpt2().save_pretrained(source)
    model = GPT2LMHeadModel.from_pretrained(source)
    if how == "changed":  # as for another vocabulary
        model.resize_token_embeddings(70)
    elif how == "new":
        model = GPT2LMHeadModel(model.config)
        assert model.config._name_or_path == str(source)
    elif how == "elsewhere":
        model.config._name_or_path = "somebody/a-model"
    trainer = trainer_of(tmp_path / "run", model=model, max_steps=1)
    record(trainer)
    trainer.train()
    started = events_in(tmp_path / "run")[0].started
    assert started.HasField("parent") == (how in {"loaded", "changed"})
    if started.HasField("parent"):
        assert started.parent.source == str(source)
        assert started.parent.weights_digest == started.initial_weights_digest


def test_unsupported_trainers_and_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LineageError, match=r"a transformers\.Trainer is needed, not a str"):
        record("trainer")  # type: ignore[arg-type]
    trainer = trainer_of(tmp_path)
    with pytest.raises(LineageError, match="norm_stride -1"):
        record(trainer, norm_stride=-1)
    short = DocumentedExamples(documents=[], pieces=[])
    with pytest.raises(LineageError, match="describe 0 examples; the trainer's dataset has 22"):
        record(trainer, documents=short)
    with pytest.raises(LineageError, match="is a RowStream without a length"):
        record(trainer_of(tmp_path, RowStream(4), max_steps=1), documents=short)
    record(trainer)
    with pytest.raises(LineageError, match="being recorded already"):
        record(trainer)
    foreign = trainer_of(tmp_path / "foreign")
    foreign.is_fsdp_enabled = True
    with pytest.raises(LineageError, match="FSDP cannot be recorded yet"):
        record(foreign)
