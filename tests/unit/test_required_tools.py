"""A tool that is said to be there is not missed silently."""

from pathlib import Path

import pytest
from required import REQUIRED, find_program, skip_without


@pytest.mark.parametrize("others", ["", "phoenix", "phoenix,prometheus"])
def test_a_tool_that_nobody_requires_is_skipped(
    monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    monkeypatch.setenv(REQUIRED, others)
    with pytest.raises(pytest.skip.Exception, match="it is not installed"):
        skip_without("chromium", "it is not installed")


@pytest.mark.parametrize("tools", ["chromium", "phoenix,chromium"])
def test_a_required_tool_that_is_missing_fails(monkeypatch: pytest.MonkeyPatch, tools: str) -> None:
    monkeypatch.setenv(REQUIRED, tools)
    with pytest.raises(pytest.fail.Exception, match="names chromium, and it is not installed"):
        skip_without("chromium", "it is not installed")


def test_a_program_is_found_by_its_variable_and_on_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "jaeger"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAEGER_BINARY", raising=False)
    assert find_program("jaeger") == str(program)
    monkeypatch.setenv("JAEGER_BINARY", "/elsewhere/jaeger")
    assert find_program("jaeger") == "/elsewhere/jaeger"


def test_the_reason_of_a_skipped_test_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAEGER_BINARY", raising=False)
    monkeypatch.setenv(REQUIRED, "")
    with pytest.raises(pytest.skip.Exception, match="put it on the PATH, or set JAEGER_BINARY"):
        find_program("jaeger")
    monkeypatch.setenv(REQUIRED, "judge")
    with pytest.raises(pytest.fail.Exception, match="jaeger is not installed"):
        find_program("jaeger", tool="judge")
