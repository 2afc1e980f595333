"""Ends of trainings, after which the record is whole and unlocked."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_training import (
    Rows,
    Stop,
    events_in,
    same_bits,
    steps_in,
    trainer_of,
    weights_of,
)

from whence.v1.training_pb2 import TrainingState
from whence_server.domain.errors import LineageError
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.writer import RecordWriter
from whence_server.training import record

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_training_says_so(tmp_path: Path, error: BaseException) -> None:
    trainer = trainer_of(tmp_path, callbacks=[Stop(2, error)])
    record(trainer)
    with pytest.raises(type(error)):
        trainer.train()
    finished = events_in(tmp_path)[-1].attempt_finished
    assert finished.state == TrainingState.TRAINING_STATE_INTERRUPTED


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
            monkeypatch.setattr("whence_server.training.recording.run.digest_weights", unavailable)
        stop(self, args, state, control, **kwargs)

    monkeypatch.setattr(Stop, "on_step_end", stopping)
    with pytest.raises(ValueError, match="the training's own"):
        trainer.train()
    assert "how the training ended is not on record: the device is gone" in caplog.text
    # The record was let go of all the same.
    RecordWriter.resume(tmp_path / RECORD_NAME).close()


@pytest.mark.parametrize("required", [False, True])
def test_unwritable_record_stays_whole_and_ends_a_training_that_requires_it(
    required: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unrecorded = trainer_of(tmp_path / "unrecorded")
    unrecorded.train()
    trainer = trainer_of(tmp_path)
    record(trainer, required=required)
    pwrite = os.pwrite

    def half(descriptor: int, octets: bytes, offset: int) -> int:
        if trainer.state.global_step < 3:
            return pwrite(descriptor, octets, offset)
        if len(octets) > 20:
            return pwrite(descriptor, octets[:20], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", half)
    if required:
        with pytest.raises(LineageError, match="No space left on device; free space"):
            trainer.train()
    else:
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        assert same_bits(weights_of(unrecorded), weights_of(trainer))
        assert "recording has stopped, and the training continues" in caplog.text
    assert [step.step for step in steps_in(tmp_path)] == [1, 2]
    monkeypatch.undo()
    RecordWriter.resume(tmp_path / RECORD_NAME).close()


def broken(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("of our own making")


@pytest.mark.parametrize(
    ("what", "subject"),
    [
        ("whence_server.training.recording.norms.NormMeter.measure_step", "norms"),
        ("whence_server.training.recording.norms.NormMeter.copy_weights", "norms"),
        ("whence_server.training.recording.recorder.NormMeter", "norms"),
        ("whence_server.training.recording.run.RecordedRun.record_evaluation", "evaluation"),
        ("whence_server.training.recording.snapshots.digest_files", "checkpoint"),
        ("whence_server.training.recording.run.TrainingStep", "everything"),
        ("whence_server.training.recording.run.RecordedRun.mark_trained", "everything"),
        ("whence_server.training.recording.loader._find_obstacle", "example_ids"),
        ("whence_server.training.recording.setup.surroundings.collect_versions", ""),
        ("whence_server.training.recording.opening.setup.describe_dataset", ""),
    ],
)
def test_recording_error_loses_only_its_part_and_leaves_the_training_bitwise_the_same(
    what: str, subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {
        "eval_dataset": Rows(5),
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "steps",
        "save_steps": 4,
    }
    unrecorded = trainer_of(tmp_path / "unrecorded", **arguments)
    unrecorded.train()
    trainer = trainer_of(tmp_path / "run", **arguments)
    monkeypatch.setattr(what, broken)
    with record(trainer):
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
    assert same_bits(weights_of(unrecorded), weights_of(trainer))
    monkeypatch.undo()
    if not subject:
        assert not (tmp_path / "run" / RECORD_NAME).exists()
        return
    events = events_in(tmp_path / "run")
    gaps = {e.gap.subject: e.gap.reason for e in events if e.HasField("gap")}
    assert set(gaps) == {subject}
    assert "of our own making" in gaps[subject]
    state = events[-1].attempt_finished.state
    stopped = subject == "everything"
    assert state == (
        TrainingState.TRAINING_STATE_UNRECORDED
        if stopped
        else TrainingState.TRAINING_STATE_COMPLETED
    )
    num_steps = 0 if what.endswith("TrainingStep") else 12
    assert len(steps_in(tmp_path / "run")) == num_steps


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


def test_saves_and_evaluations_in_a_with_block_are_recorded_before_the_end(tmp_path: Path) -> None:
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


def test_a_model_s_folder_that_is_gone_by_the_end_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is deleted before the end is not an error."""
    trainer = trainer_of(tmp_path / "run", max_steps=2)
    kept, gone, full = (tmp_path / name for name in ("kept", "gone", "full"))
    copy = shutil.copyfile

    def nearly_full(source: Path, destination: Path) -> Path:
        if destination.parent == full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return copy(source, destination)

    with record(trainer):
        trainer.train()
        for directory in (gone, full, kept):
            trainer.save_model(str(directory))
        shutil.rmtree(gone)
        monkeypatch.setattr(shutil, "copyfile", nearly_full)
    assert not gone.exists()
    for directory in (tmp_path / "run", kept):
        assert events_in(directory)[-1].WhichOneof("event") == "attempt_finished"
    assert events_in(full)[-1].WhichOneof("event") == "checkpoint"
    assert "a copy of the record ends before the training does" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_record_that_was_opened_before_serves_one_attempt_and_is_opened_for_the_next(
    tmp_path: Path,
) -> None:
    def new_trainer(**arguments: Any) -> Any:
        return trainer_of(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, **arguments)

    record(trainer := new_trainer())
    trainer.train()
    again = new_trainer()
    record(again, writer=RecordWriter.resume(tmp_path / RECORD_NAME))
    for _ in range(2):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    ends = [e.attempt_finished for e in events_in(tmp_path) if e.HasField("attempt_finished")]
    completed = TrainingState.TRAINING_STATE_COMPLETED
    assert [end.state for end in ends] == [completed] * 3
