"""The show that `make demo` gives, on a tiny model instead of the trained one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from whence_server.demo.show import show


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
async def test_the_show(
    tiny_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    endpoint: str,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    assert await show(tiny_model("gpt2")) == 0
    out = capfd.readouterr().out
    assert out.count("$ whence generate") == 3
    assert "Where the spans went" in out
    assert "What to try next" in out
    assert ("decode_step" in out) == (not endpoint)
    assert (endpoint in out) or not endpoint
