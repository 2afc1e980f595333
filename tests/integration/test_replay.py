"""Training again between two checkpoints gives the same bits, or names what differs."""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import training_runs
from safetensors.torch import load_file, save_file
from tiny_models import CORPUS

from whence.v1.training_pb2 import AttemptStarted, TrainingEvent
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.engines.transformers.digests import digest_tensors, digest_weights
from whence_server.lineage.reader import RECORD_NAME, RecordReader
from whence_server.lineage.whole import read_verified_run
from whence_server.lineage.writer import RecordWriter
from whence_server.training.emergence.process import Question, trace
from whence_server.training.recording import surroundings
from whence_server.training.train.train import train
from whence_server.training.verify import command as verify_command
from whence_server.training.verify.findings import Report, Verdict
from whence_server.training.verify.replay import _compare_surroundings, replay
from whence_server.training.verify.verify import verify

TENSOR = "transformer.h.0.mlp.c_fc.bias"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after steps 4, 8 and 12, and the texts that it read."""
    directory = tmp_path_factory.mktemp("replay")
    (directory / "texts").mkdir()
    for number, text in enumerate(CORPUS):
        (directory / "texts" / f"{number}.txt").write_text(text * 20)
    train(
        {
            "texts": (str(directory / "texts"),),
            "output": str(directory / "model"),
            "vocab_size": 300,
            "block_size": 16,
            "max_steps": 12,
            "save_steps": 4,
            "threads": 1,
            # Dropout: random states have to come back, too.
            "config_override": ("n_embd=24", "n_layer=1", "n_head=2", "resid_pdrop=0.1"),
        }
    )
    return directory


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy of the run to be damaged; its texts stay where they are."""
    return shutil.copytree(made / "model", tmp_path / "model")


def replayed(directory: Path, first_step: int, last_step: int) -> Report:
    report = verify(directory)
    replay(report, first_step, last_step)
    return report


@pytest.mark.parametrize(("first", "last"), [(4, 8), (0, 4), (4, 12)])
def test_the_same_machine_gives_the_same_bits(made: Path, first: int, last: int) -> None:
    report = replayed(made / "model", first, last)
    assert (report.verdict, report.findings, report.notes) == (Verdict.VERIFIED, [], [])
    num = report.num_tensors
    assert report.replay == (
        f"steps {first + 1} to {last} trained again: {num} of {num} tensors are the same to the bit"
    )


def test_nothing_of_the_run_is_touched(made: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    replayed(made / "model", 4, 8)
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before


def test_files_and_record_rewritten_together_pass_the_digests_and_not_the_replay(
    model: Path,
) -> None:
    checkpoint = model / "checkpoints" / "checkpoint-8"
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[TENSOR][0] += 1e-3
    save_file(tensors, checkpoint / "model.safetensors", {"format": "pt"})
    _rewrite_record(model / RECORD_NAME, checkpoint)
    assert verify(checkpoint).verdict is Verdict.VERIFIED, "which is what the command admits"
    report = replayed(checkpoint, 4, 8)
    assert report.verdict is Verdict.NOT_VERIFIED
    (finding,) = report.findings
    assert (finding.subject, finding.name) == ("replay", TENSOR)
    assert finding.expected != finding.found


def test_other_surroundings_are_told(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.setattr(
        "whence_server.training.recording.surroundings.collect_versions",
        lambda: {"torch": "0.1", "python": "3"},
    )
    notes = replayed(made / "model", 4, 8).notes
    assert "replayed with another determinism: MKL_NUM_THREADS was absent, is 3" in notes
    assert f"replayed with another version: torch was {torch.__version__}, is 0.1" in notes


def test_the_device_that_trained_is_compared_with_the_one_that_replayed() -> None:
    """Neither is the CPU: a device without data stands for an accelerator."""
    meta = torch.device("meta")
    attempt = AttemptStarted(hardware=surroundings.describe_hardware(meta))
    notes = list(_compare_surroundings(attempt, meta))
    assert not [note for note in notes if "another hardware" in note]
    notes = list(_compare_surroundings(attempt, torch.device("cpu")))
    assert "replayed with another hardware: device was meta, is cpu" in notes


def test_a_text_that_changed_is_named(tmp_path: Path, made: Path) -> None:
    texts = made / "texts" / "1.txt"
    before = texts.read_text()
    texts.write_text(before + "x")
    try:
        with pytest.raises(LineageError, match=r"1\.txt"):
            replayed(made / "model", 4, 8)
        assert _command(str(made / "model"), "--replay", "4:8") == 2
    finally:
        texts.write_text(before)


def test_a_run_that_was_resumed_verifies_and_replays(model: Path) -> None:
    shutil.rmtree(model / "checkpoints" / "checkpoint-12")
    (model / "config.json").unlink()
    train({"output": str(model), "resume": True})
    assert len(read_verified_run(model / RECORD_NAME).attempts) == 2
    report = replayed(model, 8, 12)
    assert (report.verdict, report.findings) == (Verdict.VERIFIED, [])
    assert (report.step, report.attempt) == (12, 2)
    assert verify(model / "checkpoints" / "checkpoint-8").verdict is Verdict.VERIFIED


@pytest.mark.parametrize(
    ("first", "last", "message"),
    [
        (4, 7, "no checkpoint of step 7; it has 4, 8, 12"),
        (3, 8, "no checkpoint of step 3; it has 4, 8, 12"),
        (4, 40, "no checkpoint of step 40"),
    ],
)
def test_unknown_checkpoints_are_refused(made: Path, first: int, last: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replayed(made / "model", first, last)


def test_a_start_that_is_gone_or_changed_is_refused(model: Path) -> None:
    checkpoint = model / "checkpoints" / "checkpoint-4"
    (checkpoint / "optimizer.pt").write_bytes(b"other")
    with pytest.raises(ConfigurationError, match=r"step 4 is not as recorded: file optimizer\.pt"):
        replayed(model, 4, 8)
    shutil.rmtree(checkpoint)
    with pytest.raises(ConfigurationError, match="checkpoint-4, is missing"):
        replayed(model, 4, 8)


def test_other_trainers_runs_and_models_without_a_record_are_refused(tmp_path: Path) -> None:
    record = training_runs.trained(tmp_path / "by-hand" / "model")
    with pytest.raises(ConfigurationError, match="its record has no recipe"):
        replayed(record.parent, 4, 8)
    alone = shutil.copytree(
        record.parent / "checkpoints" / "checkpoint-4", tmp_path / "x" / "y" / "alone"
    )
    with pytest.raises(ConfigurationError, match="without a record nothing can be replayed"):
        replayed(alone, 4, 8)


def test_the_command_replays(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _command(str(made / "model"), "--replay", "4:8", "--json") == 0
    fields = json.loads(capsys.readouterr().out)
    assert "are the same to the bit" in fields["replay"]
    assert _command(str(made / "model"), "--replay", "4:9") == 2
    assert "no checkpoint of step 9" in capsys.readouterr().err


def test_emergence_begins_at_the_random_weights_that_the_seed_gives_again(made: Path) -> None:
    record = made / "model" / RECORD_NAME
    answers = list(trace(Question(record, "The quick brown", " fox")))
    assert list(answers[0].started.steps) == [0, 4, 8, 12]
    started = RecordReader(record).read()[0].event.started
    assert answers[1].point.weights_digest == started.initial_weights_digest
    intervals = [it.interval for it in answers if it.HasField("interval")]
    assert [it.first_step for it in intervals] == [0, 4, 8]
    assert all(abs(it.gap) < 0.01 * max(abs(it.change), 0.05) for it in intervals)


def test_nothing_is_replayed_by_a_broken_record(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    octets = (model / RECORD_NAME).read_bytes()
    (model / RECORD_NAME).write_bytes(octets[:80] + bytes([octets[80] ^ 1]) + octets[81:])
    assert _command(str(model), "--replay", "4:8") == 1
    assert "nothing was trained again" in capsys.readouterr().out


def _command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    verify_command.add_arguments(parser)
    return verify_command.run(parser.parse_args(arguments))


def _rewrite_record(record: Path, checkpoint: Path) -> None:
    """Makes the record say of a checkpoint what lies there now, its chain computed anew."""
    events = [recorded.event for recorded in RecordReader(record).read_all()]
    record.unlink()
    writer = RecordWriter.create(record, events[0])
    for event in events[1:]:
        if event.checkpoint.path.endswith(checkpoint.name):
            _forge(event, checkpoint)
        writer.append(event)
    writer.close()


def _forge(event: TrainingEvent, directory: Path) -> None:
    state = training_runs.gpt2(directory).state_dict()
    forged = event.checkpoint
    for file in forged.files:
        file.sha256 = training_runs.sha256((directory / file.path).read_bytes())
    for tensor, now in zip(forged.tensors, digest_tensors(state), strict=True):
        tensor.sha256 = now.sha256
    forged.weights_digest = digest_weights(state)
    forged.model_digest = _model_digest(directory)


def _model_digest(directory: Path) -> str:
    from whence_server.training.recording.contents import (
        compute_model_digest,
        digest_existing_files,
        list_model_files,
    )

    files = digest_existing_files(directory, list_model_files(directory))
    return compute_model_digest(directory, files)
