"""Compiled loops are kept where that is allowed, and compiled all the same where it fails."""

import logging
from pathlib import Path
from typing import Any

import numba as nb
import pytest

from whence_server.engine.compiled import compile_now


def _twice(number: Any) -> Any:
    return 2 * number


def _made() -> Any:
    return compile_now(nb.int64(nb.int64))(_twice)


def _hits(function: Any) -> int:
    return sum(function.stats.cache_hits.values())


def test_nothing_is_kept_unless_a_place_for_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nb.config, "CACHE_DIR", "")
    function = _made()
    assert function(21) == 42
    assert function.stats.cache_path is None
    assert _hits(_made()) == 0


def test_what_is_kept_is_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nb.config, "CACHE_DIR", str(tmp_path))
    assert _hits(_made()) == 0
    again = _made()
    assert _hits(again) == 1
    assert Path(again.stats.cache_path).is_relative_to(tmp_path)
    assert again(21) == 42


@pytest.mark.parametrize("kept", ["*.nbi", "*.nbc"])
def test_what_was_cut_short_is_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: str
) -> None:
    monkeypatch.setattr(nb.config, "CACHE_DIR", str(tmp_path))
    _made()
    (file,) = tmp_path.rglob(kept)
    file.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert _made()(21) == 42
    assert f"cache in {tmp_path} is not used: EOFError" in caplog.text


def test_a_place_that_takes_nothing_stops_no_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nb.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    with caplog.at_level(logging.WARNING):
        assert _made()(21) == 42
    assert "No space left on device" in caplog.text
