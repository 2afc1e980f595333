"""Names that are not UTF-8: texts are recorded by their own bytes, all else is refused by name."""

import json
import os
from pathlib import Path

import pytest
from tiny_training import events_in, trainer_of

from whence_server.cli import main
from whence_server.domain.paths import format_path, get_undecodable_bytes
from whence_server.lineage.documents import read_document_text
from whence_server.lineage.reader import RECORD_NAME
from whence_server.lineage.whole import read_run
from whence_server.training import record

BAD = os.fsdecode(b"caf\xe9")


def test_every_name_can_be_shown_and_told_from_others() -> None:
    assert (format_path(BAD), get_undecodable_bytes(BAD)) == ("caf\\xe9", b"caf\xe9")
    assert (format_path("caf\\xe9"), get_undecodable_bytes("caf\\xe9")) == ("caf\\xe9", b"")
    assert (format_path(Path("/é/😀")), get_undecodable_bytes(Path("/é/😀"))) == ("/é/😀", b"")


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify-model", BAD),
        ("verify-model", ".", "--record", BAD),
        ("verify", "--data-dir", BAD),
        ("serve", "--model", BAD),
        ("serve", "--model", ".", "--data-dir", BAD),
        ("train", "--output", BAD, "a.txt"),
        ("train", "--output", "out", "--from", BAD, "a.txt"),
        ("weigh-heads", BAD, "a.txt", "--output", "heads"),
    ],
)
def test_names_that_no_model_is_loaded_by_are_refused(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "caf\\xe9: the name is not UTF-8" in capsys.readouterr().err


def test_a_variable_is_refused_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WHENCE_DATA_DIR", BAD)
    assert main(["serve", "--model", "."]) == 2
    assert "WHENCE_DATA_DIR caf\\xe9: the name is not UTF-8" in capsys.readouterr().err


def test_texts_are_trained_on_and_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / os.fsdecode(b"texts\xff")
    texts.mkdir()
    (texts / f"{BAD}.txt").write_text("the dog ran home and the cat sat there " * 20)
    (texts / "caf\\xe9.txt").write_text("another one of nearly this name " * 20)
    out = tmp_path / "out"
    small = ("n_layer=1", "n_embd=16", "n_head=2")
    overrides = [word for it in small for word in ("--config-override", it)]
    common = ["--block-size", "16", "--vocab-size", "300", "--max-steps", "2", "--save-steps", "1"]
    evaluated = ["--eval", str(texts / f"{BAD}.txt"), "--eval-steps", "2"]
    assert main(["train", "--output", str(out), *common, *overrides, *evaluated, str(texts)]) == 0
    documents = list(read_run(out / RECORD_NAME).training_set.read_documents())
    assert sorted(os.fsencode(texts) + b"/" + it for it in (b"caf\xe9.txt", b"caf\\xe9.txt")) == (
        sorted(document.source_bytes for document in documents)
    )
    for document in documents:
        assert read_document_text(document) == Path(os.fsdecode(document.source_bytes)).read_bytes()
    assert main(["train", "--output", str(out), "--resume"]) == 0
    checkpoint = out / "checkpoints" / "checkpoint-1"
    (checkpoint / BAD).write_text("beside")
    capsys.readouterr()
    assert main(["verify-model", str(checkpoint)]) == 0
    assert "no part of the model: caf\\xe9" in capsys.readouterr().out
    assert main(["verify-model", str(out), "--json", "--replay", "1:2"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "verified"


def test_a_model_that_is_saved_under_such_a_name_is_found_by_its_record(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path / "run", max_steps=1)
    with record(trainer, name=BAD):
        trainer.train()
        trainer.save_model(str(tmp_path / BAD))
    events = events_in(tmp_path / "run")
    assert events[0].started.name == "caf\\xe9"
    run = read_run(tmp_path / "run" / RECORD_NAME)
    assert run.checkpoints[-1].path.endswith("caf\\xe9")
    assert run.resolve_directory(run.checkpoints[-1]) == tmp_path / BAD
