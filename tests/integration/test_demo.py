"""The show that `make demo` gives, on a tiny model instead of the trained one."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from whence_server.demo.show import show


@pytest.mark.parametrize(
    ("endpoint", "trace_url"), [("", ""), ("http://127.0.0.1:9", "http://h/trace/{trace_id}")]
)
async def test_the_show(
    tiny_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    endpoint: str,
    trace_url: str,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    assert await show(tiny_model("gpt2"), trace_url) == 0
    told = capfd.readouterr()
    assert told.out.count("$ whence generate") == 3
    assert "Where the spans went" in told.out
    assert "What to try next" in told.out
    assert ("decode_step" in told.out) == (not endpoint)
    assert (endpoint in told.out) or not endpoint
    traces = re.findall(r", trace ([0-9a-f]{32})$", told.err, re.MULTILINE)
    links = re.findall(r"^http://h/trace/([0-9a-f]{32})$", told.err, re.MULTILINE)
    assert len(traces) == 3
    assert links == (traces if trace_url else [])


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--jaeger-url", "http://localhost:16686"], {}, "does not say where the trace id goes"),
        (["--trace-url", "http://h/{trace_id}"], {}, "say where they go"),
        ([], {"WHENCE_TRACE_URL": "http://h/{trace_id}"}, "say where they go"),
        (["serve", "--trace-url", "http://h/{trace_id}"], {}, "is for the show"),
    ],
)
def test_a_link_that_would_open_nothing_is_refused_before_anything_is_trained(
    arguments: list[str], environment: dict[str, str], words: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "whence_server.demo", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr.replace("\n", " ")
