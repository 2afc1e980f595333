"""Verification of models: accepted directories, and the name of each difference."""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import training_records as records
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, byte_level_tokenizer
from training_runs import gpt2, sha256, trained

from whence_server.domain.errors import ConfigurationError
from whence_server.lineage.framing import frame_message, iterate_frames
from whence_server.lineage.reader import RECORD_NAME, RecordReader
from whence_server.lineage.writer import RecordWriter
from whence_server.training.verify import command as verify_command
from whence_server.training.verify.findings import Report, Verdict
from whence_server.training.verify.verify import verify

WEIGHTS = "model.safetensors"
NAME = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "model"
    trained(directory)
    return directory


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(made, tmp_path / "model")


def told(report: Report) -> list[tuple[str, str, str]]:
    return [(it.subject, it.name, it.problem) for it in report.findings]


@pytest.mark.parametrize(
    ("where", "step"),
    [(".", 8), ("checkpoints/checkpoint-4", 4), ("checkpoints/checkpoint-8", 8)],
)
def test_the_final_model_and_every_checkpoint_verify(made: Path, where: str, step: int) -> None:
    report = verify(made / where)
    assert (report.verdict, report.findings, report.notes) == (Verdict.VERIFIED, [], [])
    assert (report.step, report.training_run_id, report.path) == (step, records.RUN, where)
    assert report.num_entries > 10
    assert report.num_files >= 4
    # Every digest against a computation that shares no code with it.
    assert report.num_tensors == len(load_file(made / where / WEIGHTS))
    names = sorted(
        p.name for p in (made / where).iterdir() if p.suffix in {".json", ".safetensors", ".jinja"}
    )
    raw = b"".join(bytes.fromhex(sha256((made / where / n).read_bytes())) for n in names)
    assert report.model_digest == sha256(raw)


def test_one_flipped_bit_names_file_and_tensor(model: Path) -> None:
    octets = bytearray((model / WEIGHTS).read_bytes())
    place = _last_byte_of(NAME, bytes(octets))
    octets[place] ^= 1
    (model / WEIGHTS).write_bytes(octets)
    report = verify(model)
    assert report.verdict is Verdict.NOT_VERIFIED
    assert [it[:2] for it in told(report)] == [
        ("file", WEIGHTS),
        ("tensor", NAME),
        ("weights", "digest"),
        ("model", "digest"),
    ]
    file, tensor, *_ = report.findings
    assert file.found == sha256(bytes(octets))
    octets[place] ^= 1
    assert file.expected == sha256(bytes(octets))
    assert tensor.expected != tensor.found
    assert (report.step, report.num_tensors) == (8, len(load_file(model / WEIGHTS)) - 1)


@pytest.mark.parametrize("place", range(0, 400, 37))
def test_a_flipped_byte_anywhere_in_any_file_is_found(model: Path, place: int) -> None:
    files = sorted(p for p in model.iterdir() if p.is_file())
    file = files[place % len(files)]
    octets = bytearray(file.read_bytes())
    octets[place * 7919 % len(octets)] ^= 0x20
    file.write_bytes(octets)
    report = verify(model)
    assert report.verdict is Verdict.NOT_VERIFIED
    named = (
        "record" if file.name == RECORD_NAME else "file",
        file.name,
    )
    assert named in {it[:2] for it in told(report)}


def test_a_renamed_tensor_is_named(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors["transformer.h.1.mlp.c_fcc.weight"] = tensors.pop(NAME)
    save_file(tensors, model / WEIGHTS, {"format": "pt"})
    report = verify(model)
    assert ("tensor", NAME, "missing") in told(report)
    (stray,) = [it for it in report.findings if it.name == "transformer.h.1.mlp.c_fcc.weight"]
    assert "the architecture has none of this name" in stray.problem
    # What transformers filled in is not told as a change.
    assert [it.problem for it in report.findings if it.name == NAME] == ["missing"]


def test_two_swapped_tensors_are_named(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    other = "transformer.h.0.mlp.c_fc.weight"
    tensors[NAME], tensors[other] = tensors[other], tensors[NAME]
    save_file(tensors, model / WEIGHTS, {"format": "pt"})
    found = {it.name: it for it in verify(model).findings if it.subject == "tensor"}
    assert found.keys() == {NAME, other}
    assert found[NAME].expected == found[other].found


def test_a_tensor_of_another_shape_and_another_dtype_are_named(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    tensors[NAME] = tensors[NAME][:, :-1].contiguous()
    save_file(tensors, model / WEIGHTS, {"format": "pt"})
    (finding,) = [it for it in verify(model).findings if it.subject == "tensor"]
    assert finding.name.startswith(NAME)
    assert finding.problem == "of another shape"


def test_a_swapped_tokenizer_is_named(model: Path) -> None:
    byte_level_tokenizer(300).save_pretrained(model)
    report = verify(model)
    assert ("file", "tokenizer.json", "changed") in told(report)
    (finding,) = [it for it in report.findings if it.subject == "tokenizer"]
    assert finding.found == report.tokenizer_digest != finding.expected
    assert not [it for it in report.findings if it.subject in {"tensor", "weights"}]


@pytest.mark.parametrize(
    "name", [WEIGHTS, "config.json", "tokenizer.json", "generation_config.json"]
)
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    report = verify(model)
    assert report.verdict is Verdict.NOT_VERIFIED
    assert ("file", name, "missing") in told(report)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.safetensors", "vocab.json"])
def test_a_file_that_would_be_read_and_is_not_on_record_is_named(model: Path, name: str) -> None:
    (model / name).write_bytes(b"{}")
    (model / "notes.md").write_text("of no consequence")
    report = verify(model)
    assert report.verdict is Verdict.NOT_VERIFIED
    extra = [it for it in report.findings if it.problem == "not on record"]
    assert [(it.subject, it.name, it.found) for it in extra] == [("file", name, sha256(b"{}"))]


def test_files_in_directories_below_are_checked_too(model: Path) -> None:
    events = [recorded.event for recorded in RecordReader(model / RECORD_NAME).read_all()]
    (model / RECORD_NAME).unlink()
    for event in events:
        if event.checkpoint.path == ".":
            event.checkpoint.files.add(path="pooling/config.json", sha256=sha256(b"{}"))
    records.write(model, events)
    assert told(verify(model)) == [("file", "pooling/config.json", "missing")]
    (model / "pooling").mkdir()
    (model / "pooling" / "config.json").write_text("{}")
    assert verify(model).verdict is Verdict.VERIFIED


def test_same_weights_in_another_file_format_are_recognised(model: Path) -> None:
    gpt2(model).save_pretrained(model / "sharded", max_shard_size="60KB")
    (model / WEIGHTS).unlink()
    for file in (model / "sharded").iterdir():
        if file.name != "generation_config.json":
            file.replace(model / file.name)
    report = verify(model)
    assert report.verdict is Verdict.NOT_VERIFIED
    assert ("file", WEIGHTS, "missing") in told(report)
    assert not [it for it in report.findings if it.subject in {"tensor", "weights"}]
    assert any("to the bit those of step 8" in note for note in report.notes)


def test_weights_cast_to_another_dtype_are_not_verified(model: Path) -> None:
    gpt2(model).to(torch.bfloat16).save_pretrained(model)
    report = verify(model)
    assert {"file", "tensor", "weights", "model"} == {it.subject for it in report.findings}


def test_checkpoint_moved_to_another_ones_folder_is_identified_by_its_files(model: Path) -> None:
    there = model / "checkpoints" / "checkpoint-4"
    shutil.rmtree(there)
    shutil.copytree(model / "checkpoints" / "checkpoint-8", there)
    report = verify(there)
    assert (report.verdict, report.step) == (Verdict.VERIFIED, 8)
    assert any("it was written to" in note for note in report.notes)


def test_a_copy_elsewhere_verifies_with_the_record_beside_it_or_named(
    made: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(made / "checkpoints" / "checkpoint-4", tmp_path / "far" / "a" / "b")
    assert verify(copy).verdict is Verdict.CANNOT_BE_CHECKED
    assert verify(copy, made / RECORD_NAME).verdict is Verdict.VERIFIED
    shutil.copy(made / RECORD_NAME, copy)
    assert (verify(copy).verdict, verify(copy).step) == (Verdict.VERIFIED, 4)


def test_without_a_record_digests_are_printed_and_nothing_is_verified(
    made: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(made / "checkpoints" / "checkpoint-4", tmp_path / "far" / "a" / "b")
    recorded = verify(made / "checkpoints" / "checkpoint-4")
    report = verify(copy)
    assert report.verdict is Verdict.CANNOT_BE_CHECKED
    assert "no record of its training" in report.reason
    assert report.weights_digest == recorded.weights_digest
    assert report.model_digest == recorded.model_digest


def test_another_models_weights_are_not_the_runs(model: Path) -> None:
    stranger = model / "stranger"
    torch.manual_seed(7)
    config = CONFIGS["gpt2"]
    type(gpt2(model))(config).save_pretrained(stranger)
    report = verify(stranger)
    assert report.verdict is Verdict.NOT_VERIFIED
    (finding,) = report.findings
    assert (finding.subject, finding.name) == ("model", str(stranger))
    assert "no checkpoint of run" in finding.problem


def test_superseded_checkpoint_is_noted(model: Path) -> None:
    writer = RecordWriter.resume(model / RECORD_NAME)
    writer.append(records.attempt(2, resumed_step=4))
    writer.close()
    report = verify(model / "checkpoints" / "checkpoint-8")
    assert report.verdict is Verdict.VERIFIED
    assert any("step 8 of attempt 1 was superseded" in note for note in report.notes)
    assert verify(model / "checkpoints" / "checkpoint-4").notes == []


def _cut(octets: bytes) -> bytes:
    entries = [frame_message(frame.message) for frame in iterate_frames(octets)]
    return b"".join([*entries[:3], *entries[4:]])


@pytest.mark.parametrize(
    ("damage", "entry"),
    [(lambda o: o[:60] + bytes([o[60] ^ 1]) + o[61:], "entry 1"), (_cut, "entry 4")],
)
def test_a_broken_chain_is_named(model: Path, damage: Callable[[bytes], bytes], entry: str) -> None:
    record = model / RECORD_NAME
    record.write_bytes(damage(record.read_bytes()))
    report = verify(model)
    assert report.verdict is Verdict.NOT_VERIFIED
    (finding,) = report.findings
    assert (finding.subject, finding.name) == ("record", RECORD_NAME)
    assert entry in finding.problem


def test_documents_that_do_not_make_the_root_are_found(tmp_path: Path) -> None:
    events = [records.started(), records.dataset(), records.attempt(), records.finished(0)]
    records.write(tmp_path, events)
    report = verify(tmp_path)
    (finding,) = report.findings
    assert "its 0 documents have the Merkle root" in finding.problem


def test_half_an_entry_at_the_end_is_found(model: Path) -> None:
    record = model / RECORD_NAME
    record.write_bytes(record.read_bytes() + b"\x7f\x01")
    report = verify(model)
    assert report.verdict is Verdict.NOT_VERIFIED
    assert told(report) == [("record", RECORD_NAME, "ends in 2 bytes that are no whole entry")]


def test_half_an_entry_that_is_being_written_is_noted(model: Path) -> None:
    record = model / RECORD_NAME
    writer = RecordWriter.resume(record)
    with record.open("ab") as file:
        file.write(b"\x7f\x01")
    report = verify(model)
    assert (report.verdict, report.notes) == (
        Verdict.VERIFIED,
        ["the record ends in 2 bytes that are no whole entry yet: a training is writing it"],
    )
    writer.close()
    assert verify(model).verdict is Verdict.NOT_VERIFIED


def test_weights_that_cannot_be_loaded_are_named(model: Path) -> None:
    (model / WEIGHTS).write_bytes(b"\xff" * 100)
    report = verify(model)
    assert ("file", WEIGHTS, "changed") in told(report)
    (finding,) = [it for it in report.findings if it.subject == "weights"]
    assert "damaged safetensors file" in finding.problem


@pytest.mark.parametrize("missing", ["directory", "record"])
def test_missing_directory_or_record_cannot_be_checked(made: Path, missing: str) -> None:
    arguments = (made / "none",) if missing == "directory" else (made, made / "none")
    with pytest.raises(ConfigurationError, match="none is not"):
        verify(*arguments)


def test_a_directory_that_never_held_a_model_cannot_be_verified(model: Path) -> None:
    with pytest.raises(ConfigurationError, match="checkpoints holds no weights"):
        verify(model / "checkpoints")
    alone = model / "a" / "b" / "c"
    alone.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="c holds no weights"):
        verify(alone)


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    verify_command.add_arguments(parser)
    return verify_command.run(parser.parse_args(arguments))


def test_the_command_prints_for_people_and_for_programs(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(str(model)) == 0
    printed = capsys.readouterr().out
    report = verify(model)
    assert printed.startswith(f"{model}: verified\n")
    for digest in (report.model_digest, report.weights_digest, report.head, report.merkle_root):
        assert digest in printed
    assert "reveals accidental changes, not a forgery" in printed
    assert "(tiny), step 8 of 8, attempt 1" in printed
    (model / "config.json").unlink()
    assert command(str(model), "--json") == 1
    fields = json.loads(capsys.readouterr().out)
    assert fields["verdict"] == "not_verified"
    assert {"subject": "file", "name": "config.json", "problem": "missing"}.items() <= fields[
        "findings"
    ][0].items()
    assert "reveals accidental changes" in fields["unsigned"]
    assert command(str(model / "none")) == 2
    assert "none is not a directory" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["4", "8:4", "4:4", "a:b", "-1:4"])
def test_invalid_replay_steps_are_refused(
    steps: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command(str(made), f"--replay={steps}")
    assert "expected two step numbers" in capsys.readouterr().err


def _last_byte_of(tensor: str, octets: bytes) -> int:
    """Return a tensor's byte range: https://huggingface.co/docs/safetensors, Format."""
    size = int.from_bytes(octets[:8], "little")
    return 8 + size + json.loads(octets[8 : 8 + size])[tensor]["data_offsets"][1] - 1
