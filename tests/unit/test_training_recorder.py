"""Any Trainer on record: what it says is what was done, and not one bit of it is changed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import chain
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
    tiny_gpt2,
    trainer_of,
    weights_of,
)
from torch.utils.data import Dataset
from transformers import GPT2LMHeadModel, Trainer, TrainerCallback

from whence.v1.training_pb2 import TrainingState
from whence_server.domain.errors import LineageError
from whence_server.engine.digests import file_digests, model_signing_digest, weights_digest
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.writer import RecordWriter
from whence_server.training import Document, DocumentedExamples, Piece, record

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


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def test_numbers_are_the_trainers_own(tmp_path: Path) -> None:
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


def test_what_is_said_of_the_run(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, hub_token="secret-token")
    before = weights_digest(trainer.model.state_dict())
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
    assert finished.weights_digest == weights_digest(trainer.model.state_dict()) != before


def test_checkpoints_are_digested_and_kept_and_evaluations_are_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(
        tmp_path,
        save_strategy="steps",
        save_steps=4,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=6,
        eval_dataset=Rows(5),
    )
    record(trainer)
    assert "save_total_limit=1 is lifted" in caplog.text
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    events = events_in(tmp_path)
    checkpoints = [e.checkpoint for e in events if e.WhichOneof("event") == "checkpoint"]
    assert [(c.path, c.step, c.resumable) for c in checkpoints] == [
        ("checkpoint-4", 4, True),
        ("checkpoint-8", 8, True),
        ("checkpoint-12", 12, True),
        ("final", 12, False),
    ]
    for checkpoint in checkpoints:
        directory = tmp_path / checkpoint.path
        names = [path.name for path in directory.iterdir() if path.name != "lineage.binpb"]
        digests = file_digests(directory, names)
        assert [(f.path, f.sha256) for f in checkpoint.files] == [
            (f.path, f.sha256) for f in digests
        ]
        names = {tensor.name for tensor in checkpoint.tensors}
        assert "lm_head.weight" in names
        assert "transformer.wte.weight" not in names  # tied
    assert checkpoints[-1].weights_digest == weights_digest(trainer.model.state_dict())
    evaluations = [e.evaluation for e in events if e.WhichOneof("event") == "evaluation"]
    assert [e.step for e in evaluations] == [6, 12]
    assert evaluations[0].metrics["eval_loss"] > 0
    # The record beside the saved model is the record.
    assert events_in(tmp_path / "final") == events


def test_a_model_with_its_tokenizer_has_the_digest_that_the_server_gives(
    tmp_path: Path, tiny_model: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from whence_server.engine.weights import model_files, weight_files

    source = tiny_model("gpt2")
    trainer = trainer_of(tmp_path, model=AutoModelForCausalLM.from_pretrained(source), max_steps=1)
    trainer.processing_class = AutoTokenizer.from_pretrained(source)
    recorder = record(trainer)
    trainer.train()
    trainer.save_model()
    assert recorder.run is not None
    checkpoint = events_in(tmp_path)[-1].checkpoint
    names = model_files(tmp_path, weight_files(tmp_path), with_code=False)
    digest = model_signing_digest(file_digests(tmp_path, names))
    assert (checkpoint.path, checkpoint.model_digest) == (".", digest)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert checkpoint.weights_digest == weights_digest(loaded.state_dict())
    assert events_in(tmp_path)[0].started.tokenizer_digest


def test_rotation_can_be_wished_for(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=5, save_total_limit=1)
    record(trainer, keep_checkpoints=False)
    trainer.train()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-12"]


class Stop(TrainerCallback):
    """Ends a training as a crash would."""

    def __init__(self, step: int, error: BaseException) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise self.error


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_is_the_uninterrupted_one_and_discarded_steps_stay(
    tmp_path: Path, workers: int
) -> None:
    arguments = {
        "save_strategy": "steps",
        "save_steps": 4,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 4,
        "dataloader_num_workers": workers,
    }
    whole = trainer_of(tmp_path / "whole", **arguments)
    whole.train()

    broken = trainer_of(tmp_path / "run", callbacks=[Stop(6, ValueError("by chance"))], **arguments)
    record(broken)
    with pytest.raises(ValueError, match="by chance"):
        broken.train()
    resumed = trainer_of(tmp_path / "run", **arguments)
    record(resumed)
    seen = SeenRows(resumed.model)
    resumed.train(resume_from_checkpoint=True)

    assert same_bits(weights_of(whole), weights_of(resumed))
    events = events_in(tmp_path / "run")
    attempts = [e.attempt_started for e in events if e.WhichOneof("event") == "attempt_started"]
    assert [(a.attempt, a.resumed_step) for a in attempts] == [(1, 0), (2, 4)]
    steps = steps_in(tmp_path / "run")
    numbers = [(step.attempt, step.step) for step in steps]
    # The step at whose end a callback raised was made.
    assert numbers == [(1, n) for n in range(1, 7)] + [(2, n) for n in range(5, 13)]
    again = steps[6:]
    assert list(again[0].ranks[0].example_ids) == list(chain(*seen.passes[:2]))
    assert again[0].num_tokens_seen == steps[4].num_tokens_seen
    failed, completed = [
        e.attempt_finished for e in events if e.WhichOneof("event") == "attempt_finished"
    ]
    assert failed.state == TrainingState.TRAINING_STATE_FAILED
    assert (failed.step, failed.error) == (6, "ValueError: by chance")
    assert completed.state == TrainingState.TRAINING_STATE_COMPLETED


def tried_again(directory: Path, num_steps: int) -> Trainer:
    """Begins again with a smaller batch, once so many steps were made."""

    class Small(Trainer):
        def training_step(self, model: Any, inputs: Any, *args: Any) -> torch.Tensor:
            if len(inputs["input_ids"]) > 3 and self.state.global_step == num_steps:
                raise RuntimeError("CUDA out of memory.")
            return super().training_step(model, inputs, *args)

    plain = trainer_of(directory, auto_find_batch_size=True, num_train_epochs=1)
    return Small(model=plain.model, args=plain.args, train_dataset=Rows(22))


def test_a_training_that_is_tried_again_with_a_smaller_batch_is_another_attempt(
    tmp_path: Path,
) -> None:
    trainer = tried_again(tmp_path, num_steps=0)
    record(trainer)
    trainer.train()
    events = events_in(tmp_path)
    attempts = [e.attempt_started for e in events if e.WhichOneof("event") == "attempt_started"]
    assert [(a.attempt, a.resumed_step) for a in attempts] == [(1, 0), (2, 0)]
    assert attempts[1].weights_digest == attempts[0].weights_digest
    assert {len(s.ranks[0].example_ids) for s in steps_in(tmp_path)[:-1]} == {3}


def test_what_would_keep_the_effect_of_superseded_steps_is_refused(tmp_path: Path) -> None:
    trainer = tried_again(tmp_path, num_steps=2)
    record(trainer)
    with pytest.raises(LineageError, match=r"after 2 steps, whose effect would stay .* now, 3$"):
        trainer.train()
    again = trainer_of(tmp_path, model=trainer.model)
    record(again, restart=True)
    with pytest.raises(LineageError, match="not at the weights that the run began at"):
        again.train()
    events = events_in(tmp_path)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[2:] == ["attempt_started", "step", "step", "attempt_finished"]
    assert events[-1].attempt_finished.step == 2
    assert events[-1].attempt_finished.state == TrainingState.TRAINING_STATE_FAILED
    # From the weights that it began at it is the same run.
    fresh = trainer_of(tmp_path)
    record(fresh, restart=True)
    fresh.train()
    assert [s.step for s in steps_in(tmp_path)] == [1, 2, *range(1, 13)]


@pytest.mark.parametrize("in_block", [False, True])
def test_a_model_whose_best_weights_were_loaded_again_is_on_record_by_their_step(
    in_block: bool, tmp_path: Path
) -> None:
    class Worsens(TrainerCallback):
        """The second measurement is the best of three."""

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["metrics"]["eval_quality"] = {4: 1.0, 8: 2.0}.get(state.global_step, 0.0)

    trainer = trainer_of(
        tmp_path / "run",
        callbacks=[Worsens()],
        eval_dataset=Rows(5),
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="quality",
        greater_is_better=True,
    )
    with record(trainer) if in_block else nullcontext(record(trainer)):
        trainer.train()
        trainer.save_model(str(tmp_path / "best"))
        trainer.evaluate()
    events = events_in(tmp_path / "run")
    by_step = {
        e.checkpoint.step: e.checkpoint
        for e in events
        if e.WhichOneof("event") == "checkpoint" and e.checkpoint.resumable
    }
    assert sorted(by_step) == [4, 8, 12]
    kinds = ["attempt_finished", "checkpoint", "evaluation"]
    kinds = kinds[1:] + kinds[:1] if in_block else kinds
    assert [event.WhichOneof("event") for event in events[-3:]] == kinds
    final = events[-3 + kinds.index("checkpoint")].checkpoint
    evaluation = events[-3 + kinds.index("evaluation")].evaluation
    assert final.path.endswith("/best")
    assert (final.step, final.weights_digest) == (8, by_step[8].weights_digest)
    assert final.weights_digest != by_step[12].weights_digest
    assert evaluation.step == 8
    finished = next(e.attempt_finished for e in events if e.HasField("attempt_finished"))
    assert (finished.step, finished.weights_digest) == (12, final.weights_digest)


def test_workers_that_outlive_the_training_leave_the_record_free(tmp_path: Path) -> None:
    trainer = trainer_of(
        tmp_path, max_steps=2, dataloader_num_workers=2, dataloader_persistent_workers=True
    )
    record(trainer)
    loaders: list[Any] = []
    get = trainer.get_train_dataloader
    trainer.get_train_dataloader = lambda: loaders.append(get()) or loaders[-1]  # type: ignore[method-assign]
    trainer.train()
    # The workers, forked while the record was open, are still there.
    assert loaders
    trainer.save_model()
    assert events_in(tmp_path)[-1].checkpoint.step == 2


def test_an_error_of_the_training_is_not_replaced_by_one_of_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable(state: Any) -> str:
        raise RuntimeError("the device is gone")

    trainer = trainer_of(tmp_path, callbacks=[Stop(2, ValueError("the training's own"))])
    record(trainer)
    stop = Stop.on_step_end

    def stopping(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            monkeypatch.setattr("whence_server.training.run.weights_digest", unavailable)
        stop(self, args, state, control, **kwargs)

    monkeypatch.setattr(Stop, "on_step_end", stopping)
    with pytest.raises(ValueError, match="the training's own"):
        trainer.train()
    assert "how the training ended is not on record: the device is gone" in caplog.text
    # The record was let go of all the same.
    RecordWriter.resume(tmp_path / RECORD_NAME).close()


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


def test_a_record_that_begins_at_a_checkpoint_names_it(tmp_path: Path) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    unrecorded = trainer_of(tmp_path, **arguments)
    unrecorded.train()
    shutil.rmtree(tmp_path / "checkpoint-4")
    resumed = trainer_of(tmp_path, **arguments)
    record(resumed)
    resumed.train(resume_from_checkpoint=True)
    events = events_in(tmp_path)
    assert events[0].started.parent.source == str(tmp_path / "checkpoint-2")
    assert events[0].started.parent.weights_digest == events[2].attempt_started.weights_digest
    assert [s.step for s in steps_in(tmp_path)] == [3, 4]


def test_an_iterable_dataset_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 3, "max_steps": 9}
    whole = trainer_of(tmp_path / "whole", RowStream(22), **arguments)
    whole.train()
    broken = trainer_of(
        tmp_path / "run", RowStream(22), callbacks=[Stop(5, ValueError("by chance"))], **arguments
    )
    record(broken)
    with pytest.raises(ValueError, match="by chance"):
        broken.train()
    resumed = trainer_of(tmp_path / "run", RowStream(22), **arguments)
    record(resumed)
    seen = SeenRows(resumed.model)
    resumed.train(resume_from_checkpoint=True)
    assert same_bits(weights_of(whole), weights_of(resumed))
    steps = steps_in(tmp_path / "run")
    assert [s.step for s in steps] == [*range(1, 6), *range(4, 10)]
    assert [list(s.ranks[0].example_ids) for s in steps[5:]] == seen.passes


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


def test_measurements_after_the_training_are_recorded(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, max_steps=2, eval_dataset=Rows(5))
    record(trainer)
    trainer.train()
    trainer.evaluate()
    evaluation = events_in(tmp_path)[-1].evaluation
    assert (evaluation.step, evaluation.attempt) == (2, 1)
    assert evaluation.metrics["eval_loss"] > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_training_says_so(tmp_path: Path, error: BaseException) -> None:
    trainer = trainer_of(tmp_path, callbacks=[Stop(2, error)])
    record(trainer)
    with pytest.raises(type(error)):
        trainer.train()
    finished = events_in(tmp_path)[-1].attempt_finished
    assert finished.state == TrainingState.TRAINING_STATE_INTERRUPTED


def test_a_new_run_is_not_recorded_over_another(tmp_path: Path) -> None:
    for expected in (None, "another run was recorded here"):
        trainer = trainer_of(tmp_path, max_steps=1)
        record(trainer)
        if expected is None:
            trainer.train()
        else:
            with pytest.raises(LineageError, match=expected):
                trainer.train()


def test_another_dataset_or_checkpoint_or_model_is_refused_on_resume(tmp_path: Path) -> None:
    arguments = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    first = trainer_of(tmp_path / "run", **arguments)
    record(first)
    first.train()
    checkpoint = str(tmp_path / "run" / "checkpoint-1")

    other_data = trainer_of(tmp_path / "run", Rows(21), **arguments)
    record(other_data)
    with pytest.raises(LineageError, match="num_examples was 22, is 21"):
        other_data.train(resume_from_checkpoint=checkpoint)

    stranger = trainer_of(tmp_path / "stranger", seed=5, **arguments)
    stranger.train()
    foreign = trainer_of(tmp_path / "run", **arguments)
    record(foreign)
    with pytest.raises(LineageError, match="step 1 is not this run's"):
        foreign.train(resume_from_checkpoint=str(tmp_path / "stranger" / "checkpoint-1"))


def test_a_record_that_cannot_be_written_ends_the_training_and_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(tmp_path)
    record(trainer)
    pwrite = os.pwrite

    def half(descriptor: int, octets: bytes, offset: int) -> int:
        if trainer.state.global_step < 3:
            return pwrite(descriptor, octets, offset)
        if len(octets) > 20:
            return pwrite(descriptor, octets[:20], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(LineageError, match="No space left on device; make room"):
        trainer.train()
    assert [step.step for step in steps_in(tmp_path)] == [1, 2]


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


def test_what_cannot_be_recorded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LineageError, match=r"a transformers\.Trainer is needed, not a str"):
        record("trainer")  # type: ignore[arg-type]
    trainer = trainer_of(tmp_path)
    with pytest.raises(LineageError, match="norm_stride -1"):
        record(trainer, norm_stride=-1)
    short = DocumentedExamples(documents=[], pieces=[])
    with pytest.raises(LineageError, match="tell of 0 examples; the trainer's dataset has 22"):
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


def test_batches_that_are_no_dictionaries_are_refused(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    trainer.data_collator = tuple
    record(trainer)
    with pytest.raises(LineageError, match="gives a tuple: only batches that are dictionaries"):
        trainer.train()


def test_what_is_saved_and_measured_in_a_with_block_comes_before_the_end(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", max_steps=2, eval_dataset=Rows(5))
    with record(trainer) as recorder:
        trainer.train()
        assert recorder.run is not None
        assert recorder.run.is_open
        trainer.save_model(str(tmp_path / "final"))
        trainer.evaluate()
    events = events_in(tmp_path / "run")
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[3:] == ["step", "step", "checkpoint", "evaluation", "attempt_finished"]
    saved, measured, finished = events[-3].checkpoint, events[-2].evaluation, events[-1]
    assert (saved.step, measured.step, finished.attempt_finished.step) == (2, 2, 2)
    assert finished.attempt_finished.state == TrainingState.TRAINING_STATE_COMPLETED
    assert finished.attempt_finished.weights_digest == saved.weights_digest
    # The record beside the saved model is the record, its end included.
    assert events_in(tmp_path / "final") == events
    # The block is left: what comes now follows the end.
    trainer.save_model()
    assert events_in(tmp_path / "run")[-1].checkpoint.path == "."


def test_an_error_after_the_training_fails_the_attempt_that_a_with_block_holds(
    tmp_path: Path,
) -> None:
    trainer = trainer_of(tmp_path, max_steps=2)

    def train_and_save() -> None:
        with record(trainer):
            trainer.train()
            raise ValueError("not saved")

    with pytest.raises(ValueError, match="not saved"):
        train_and_save()
    finished = events_in(tmp_path)[-1].attempt_finished
    assert finished.state == TrainingState.TRAINING_STATE_FAILED
    assert (finished.step, finished.error) == (2, "ValueError: not saved")


def test_a_training_that_fails_in_a_with_block_ends_once(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, callbacks=[Stop(2, KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt), record(trainer):
        trainer.train()
    kinds = [event.WhichOneof("event") for event in events_in(tmp_path)]
    assert kinds.count("attempt_finished") == 1
    assert kinds[-1] == "attempt_finished"


def test_a_second_training_in_a_with_block_goes_on_with_the_record(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    with record(trainer):
        trainer.train()
        trainer.args.max_steps = 4
        trainer.train(resume_from_checkpoint=True)
    events = events_in(tmp_path)
    states = [e.attempt_finished.state for e in events if e.HasField("attempt_finished")]
    assert states == [TrainingState.TRAINING_STATE_COMPLETED] * 2
    assert [(s.attempt, s.step) for s in steps_in(tmp_path)] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    assert events[-1].HasField("attempt_finished")
