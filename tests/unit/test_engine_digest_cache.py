"""The digest cache: changed content is detected in every way of changing a file."""

import hashlib
import json
import logging
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_harness import engine_options
from safetensors.torch import load_file, save_file

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.model import FileDigest
from whence_server.engines import file_digests
from whence_server.engines.transformers import digest_cache, loading
from whence_server.engines.transformers.digest_cache import DigestCache
from whence_server.engines.transformers.digests import digest_weights

SIZE = 4096
CONDITIONS = "transformers 5, float32"


@pytest.fixture(autouse=True)
def everything_is_large_and_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the cache accept the tests' files, which are small and new."""
    monkeypatch.setattr(digest_cache, "ALWAYS_READ_BYTES", 0)
    monkeypatch.setattr(digest_cache, "COARSEST_CLOCK_NS", 0)
    monkeypatch.setattr(digest_cache, "SAMPLE_BYTES", 16)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"1" * SIZE)
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "data" / "digests.json"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def start(cache: Path, path: Path, tensors: str = "t1") -> FileDigest:
    """Digest a file as one start of the server does."""
    remembered, paths = DigestCache(str(cache)), {path.name: path}
    files = remembered.compute(paths)
    return remembered.confirm(paths, files, tensors, CONDITIONS)[0]


def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "hash_file", lambda path: pytest.fail(f"read {path}"))


def keep_times(path: Path, before: os.stat_result) -> None:
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewritten_in_place(path: Path, content: bytes) -> None:
    before = path.stat()
    path.write_bytes(content)
    keep_times(path, before)


def replaced_by_a_copy(path: Path, content: bytes) -> None:
    """Replace a file by a new one with the old mtime, as `rsync -t` does."""
    before, other = path.stat(), path.with_name(".other")
    other.write_bytes(content)
    keep_times(other, before)
    other.replace(path)


def written_through_a_mapping(path: Path, content: bytes) -> None:
    before = path.stat()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:] = content
        mapped.flush()
    keep_times(path, before)


def linked_to(path: Path, content: bytes) -> None:
    before, other = path.stat(), path.with_name("other")
    other.write_bytes(content)
    keep_times(other, before)
    path.unlink()
    path.symlink_to(other)


REPLACEMENTS = [rewritten_in_place, replaced_by_a_copy, written_through_a_mapping, linked_to]


def test_a_second_start_hashes_no_file(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(cache, weights)
    no_reading(monkeypatch)
    assert start(cache, weights) == first == FileDigest("weights", SIZE, sha256(b"1" * SIZE))
    assert [path.name for path in cache.parent.iterdir()] == [cache.name], "no temporary left"


@pytest.mark.parametrize("replace", REPLACEMENTS)
@pytest.mark.parametrize("place", [0, SIZE // 2 + 5, SIZE - 1])
def test_other_content_of_equal_size_and_time_has_its_own_digest(
    weights: Path, cache: Path, replace: Callable[[Path, bytes], None], place: int
) -> None:
    start(cache, weights)
    before = weights.stat()
    content = bytearray(b"1" * SIZE)
    content[place] = ord("2")
    replace(weights, bytes(content))
    after = weights.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert start(cache, weights).sha256 == sha256(bytes(content))


def pretend_the_file_system_saw_nothing(cache: Path, path: Path) -> None:
    """Write the new file's metadata into the cache entry of a replaced file."""
    document = json.loads(cache.read_text())
    now = digest_cache.read_identity(path)
    document["files"][str(path)] |= {"identity": list(now), "begun_ns": now.ctime_ns}
    cache.write_text(json.dumps(document))


def test_a_sample_of_the_content_is_compared(weights: Path, cache: Path) -> None:
    start(cache, weights)
    rewritten_in_place(weights, b"1" * (SIZE - 1) + b"2")
    pretend_the_file_system_saw_nothing(cache, weights)
    assert start(cache, weights).sha256 == sha256(b"1" * (SIZE - 1) + b"2")


def test_tensors_that_contradict_the_cache_make_files_be_hashed_again(
    weights: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(cache, weights, "t1")
    # Between two samples, with every trace in the file system wiped out.
    other = b"1" * 40 + b"2" + b"1" * (SIZE - 41)
    rewritten_in_place(weights, other)
    pretend_the_file_system_saw_nothing(cache, weights)
    with caplog.at_level(logging.ERROR):
        assert start(cache, weights, "t2").sha256 == sha256(other)
    assert "without a change of their metadata" in caplog.text
    assert "weights" in caplog.records[0].getMessage()
    caplog.clear()
    assert start(cache, weights, "t2").sha256 == sha256(other)
    assert not caplog.records


def test_unknown_tensors_make_files_be_hashed_again(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(cache, weights)
    remembered, paths = DigestCache(str(cache)), {"weights": weights}
    files = remembered.compute(paths)
    read: list[Path] = []
    original = file_digests.hash_file
    monkeypatch.setattr(file_digests, "hash_file", lambda p: read.append(p) or original(p))
    assert remembered.confirm(paths, files, "t1", "transformers 6, float32") == files
    assert read == [weights]


def test_a_file_as_new_as_its_digest_is_hashed_again(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_cache, "COARSEST_CLOCK_NS", 10**12)
    start(cache, weights)
    no_reading(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="read"):
        start(cache, weights)


def test_small_files_are_always_hashed(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_cache, "ALWAYS_READ_BYTES", SIZE)
    start(cache, weights)
    assert not json.loads(cache.read_text())["files"]


OF_AN_OLDER_RELEASE = json.dumps({"/a:1:2": "00" * 32})


@pytest.mark.parametrize(
    ("content", "is_named"),
    [
        ("", True),
        ("{", True),
        ("[]", True),
        ("\x00", True),
        ('{"version": 2}', True),
        ('{"version": 2, "files": {"/a": {"sha256": "zz"}}, "weights": {}}', True),
        ('{"version": 2, "files": {"/a": "00"}, "weights": {}}', True),
        (OF_AN_OLDER_RELEASE, False),
    ],
)
def test_a_malformed_cache_is_ignored_with_one_warning(
    weights: Path,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    content: str,
    is_named: bool,
) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert start(cache, weights).sha256 == sha256(b"1" * SIZE)
    assert [str(cache) in record.getMessage() for record in caplog.records] == [True] * is_named
    assert json.loads(cache.read_text())["version"] == 2


def test_an_unwritable_cache_gives_one_warning(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = weights / "digests.json"
    assert start(nowhere, weights).sha256 == sha256(b"1" * SIZE)
    assert "cannot be written" in caplog.records[-1].getMessage()
    directory = tmp_path / "digests.json"
    directory.mkdir()
    caplog.clear()
    assert start(directory, weights).sha256 == sha256(b"1" * SIZE)
    assert sum("cannot be written" in record.getMessage() for record in caplog.records) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digests.json", "weights"]


def other_weights(directory: Path) -> None:
    """Put other tensors of the same shapes into a model's file."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    key = next(name for name in sorted(tensors) if tensors[name].dim() == 2)
    changed = tensors | {key: tensors[key].clone().neg_()}
    other = directory / ".other"
    save_file(changed, other, metadata={"format": "pt"})
    content = other.read_bytes()
    other.unlink()
    written_through_a_mapping(path, content)


def test_a_model_with_exchanged_weights_is_served_under_its_own_digest(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
    options = engine_options(directory, digest_cache=str(tmp_path / "digests.json"))
    before = loading.load(options).info
    other_weights(directory)
    after, afresh = loading.load(options).info, loading.load(engine_options(directory)).info
    assert after.model_digest == afresh.model_digest != before.model_digest
    assert after.weights_digest == afresh.weights_digest != before.weights_digest


def test_writing_to_weight_files_does_not_change_a_loaded_model(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(tiny_model("llama"), tmp_path / "model"))
    loaded = loading.load(engine_options(directory))
    other_weights(directory)
    assert digest_weights(loaded.model.state_dict()) == loaded.info.weights_digest


def test_tied_weights_stay_tied_in_memory(tiny_model: Callable[..., Path]) -> None:
    model = loading.load(engine_options(tiny_model("gpt2"))).model
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()


def test_weights_that_change_during_loading_are_refused(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(tiny_model("gpt2"), tmp_path / "model"))
    load_model = loading.load_model

    def slow(*arguments: object) -> torch.nn.Module:
        model = load_model(*arguments)  # type: ignore[arg-type]
        other_weights(directory)
        return model

    monkeypatch.setattr(loading, "load_model", slow)
    with pytest.raises(ConfigurationError, match=r"model\.safetensors changed while"):
        loading.load(engine_options(directory))


@pytest.mark.parametrize(
    "identity", ["[" * 100_000, "[1e999]"], ids=["nested too deep", "a number without end"]
)
def test_a_cache_with_invalid_numbers_is_ignored(tmp_path, identity):
    file = tmp_path / "digests.json"
    entry = f'{{"sha256": "{"0" * 64}", "identity": {identity}, "begun_ns": 1, "sample": ""}}'
    file.write_text(f'{{"version": 2, "files": {{"a": {entry}}}, "weights": {{}}}}')
    assert DigestCache(str(file)).compute({}) == []


def test_a_pipe_in_place_of_the_cache_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "digests.json")
    assert DigestCache(str(tmp_path / "digests.json")).compute({}) == []
