"""A tool that is said to be there is not missed silently."""

import pytest
from required import REQUIRED, skip_without


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
