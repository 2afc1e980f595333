"""Number of reads of a saved model's files."""

from pathlib import Path

import pytest
from tiny_models import byte_level_tokenizer
from tiny_training import tiny_gpt2

from whence_server.engines import file_digests
from whence_server.engines.transformers import digests
from whence_server.engines.transformers.weights import list_model_files, list_weight_files
from whence_server.lineage.reader import RECORD_NAME
from whence_server.training.recording.snapshots import make_checkpoint


@pytest.mark.parametrize("where", [".", "checkpoints/checkpoint-1"])
def test_each_file_is_read_once(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, directory = tiny_gpt2(), tmp_path / where
    model.save_pretrained(directory)
    byte_level_tokenizer().save_pretrained(directory)
    read: list[str] = []
    original = file_digests.hash_file

    def counted(path: Path) -> str:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(file_digests, "hash_file", counted)
    made = make_checkpoint(directory, tmp_path / RECORD_NAME, model)
    assert read == [file.path for file in made.files]
    names = list_model_files(directory, list_weight_files(directory), with_code=False)
    whole = digests.digest_model_files(digests.digest_files(directory, names))
    assert made.model_digest == whole
