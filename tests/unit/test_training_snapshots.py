"""What a snapshot says of weights on disk costs one reading of each file."""

from pathlib import Path

import pytest
from tiny_models import byte_level_tokenizer
from tiny_training import tiny_gpt2

from whence_server.engine import digests
from whence_server.engine.weights import model_files, weight_files
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training.recording.snapshots import checkpoint


@pytest.mark.parametrize("where", [".", "checkpoints/checkpoint-1"])
def test_each_file_is_read_once(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, directory = tiny_gpt2(), tmp_path / where
    model.save_pretrained(directory)
    byte_level_tokenizer().save_pretrained(directory)
    read: list[str] = []
    original = digests._sha256_of_file

    def counted(path: Path) -> str:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(digests, "_sha256_of_file", counted)
    made = checkpoint(directory, tmp_path / RECORD_NAME, model)
    assert read == [file.path for file in made.files]
    names = model_files(directory, weight_files(directory), with_code=False)
    whole = digests.model_signing_digest(digests.file_digests(directory, names))
    assert made.model_digest == whole
