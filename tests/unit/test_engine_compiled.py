"""The cache of compiled loops: used if it is configured, and ignored if it fails."""

import logging
from pathlib import Path
from typing import Any

import numba as nb
import pytest

from whence_server.engines.transformers.compiled import compile_now


def _twice(number: Any) -> Any:
    return 2 * number


def _made() -> Any:
    return compile_now(nb.int64(nb.int64))(_twice)


def _hits(function: Any) -> int:
    return sum(function.stats.cache_hits.values())


def test_compiled_code_is_not_cached_without_numba_cache_dir(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nb.config, "CACHE_DIR", "")
    function = _made()
    assert function(21) == 42
    assert function.stats.cache_path is None
    assert _hits(_made()) == 0


def test_cached_code_is_loaded_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nb.config, "CACHE_DIR", str(tmp_path))
    assert _hits(_made()) == 0
    again = _made()
    assert _hits(again) == 1
    assert Path(again.stats.cache_path).is_relative_to(tmp_path)
    assert again(21) == 42


@pytest.mark.parametrize("kept", ["*.nbi", "*.nbc"])
def test_a_truncated_cache_file_is_compiled_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: str
) -> None:
    monkeypatch.setattr(nb.config, "CACHE_DIR", str(tmp_path))
    _made()
    (file,) = tmp_path.rglob(kept)
    file.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert _made()(21) == 42
    assert f"cache in {tmp_path} is not used: EOFError" in caplog.text


def test_an_unwritable_cache_does_not_fail_the_compilation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nb.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    with caplog.at_level(logging.WARNING):
        assert _made()(21) == 42
    assert "No space left on device" in caplog.text
