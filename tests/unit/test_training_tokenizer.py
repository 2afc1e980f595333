"""Loading of an existing tokenizer for a training."""

from pathlib import Path

import pytest
from tiny_models import byte_level_tokenizer

from whence_server.domain.errors import ConfigurationError
from whence_server.training.train.tokenizer import load_block_tokenizer, load_tokenizer


def test_a_tokenizer_that_was_loaded_is_saved_as_it_was(tmp_path: Path) -> None:
    byte_level_tokenizer().save_pretrained(tmp_path / "one")
    load_block_tokenizer(tmp_path / "one").save_pretrained(tmp_path / "other")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "other").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_tokenizer_without_end_of_text_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).eos_token_id is None
    with pytest.raises(ConfigurationError, match="has no end-of-sequence token to put after a"):
        load_block_tokenizer(tmp_path)


def test_unloadable_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"has no tokenizer: tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=f"the tokenizer in {tmp_path} cannot be loaded"):
        load_tokenizer(tmp_path)
