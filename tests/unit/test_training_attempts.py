"""Trainings that resume or begin again: continued in the same run, or refused."""

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import (
    Rows,
    RowStream,
    SeenRows,
    Stop,
    events_in,
    same_bits,
    steps_in,
    trainer_of,
    weights_of,
)
from transformers import Trainer

from whence.v1.training_pb2 import TrainingState
from whence_server.domain.errors import LineageError
from whence_server.training import record

pytestmark = pytest.mark.usefixtures("one_thread")


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


def tried_again(directory: Path, num_steps: int) -> Trainer:
    """Trainer that begins again with a smaller batch after `num_steps` steps."""

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


def test_smaller_batch_after_the_first_step_stops_recording(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unrecorded = tried_again(tmp_path / "unrecorded", num_steps=2)
    unrecorded.train()
    trainer = tried_again(tmp_path, num_steps=2)
    record(trainer)
    trainer.train()
    # The training went on, on the weights that it had.
    assert same_bits(weights_of(unrecorded), weights_of(trainer))
    assert "recording has stopped, and the training continues: the trainer" in caplog.text
    again = trainer_of(tmp_path, model=trainer.model)
    record(again, restart=True)
    with pytest.raises(LineageError, match="and the run on record began with"):
        again.train()
    events = events_in(tmp_path)
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[2:] == ["attempt_started", "step", "step", "gap", "attempt_finished"]
    finished = events[-1].attempt_finished
    assert finished.step == 2
    assert finished.state == TrainingState.TRAINING_STATE_UNRECORDED
    assert "after 2 steps, whose effect stays in the weights" in finished.error
    assert finished.error.endswith("smaller batch size, 3")
    # From the weights that it began at it is the same run.
    fresh = trainer_of(tmp_path)
    record(fresh, restart=True)
    fresh.train()
    assert [s.step for s in steps_in(tmp_path)] == [1, 2, *range(1, 13)]


def test_a_new_run_is_not_recorded_over_another(tmp_path: Path) -> None:
    for expected in (None, "it is the record of another run"):
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
