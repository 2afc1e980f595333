"""Output of `make demo`, on a tiny model instead of the trained one."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from whence_server.demo.show import _print_spans, find_collector, show


@pytest.mark.parametrize(
    ("endpoint", "trace_url"), [("", ""), ("http://127.0.0.1:9", "http://h/trace/{trace_id}")]
)
async def test_demo_prints_generations_and_their_spans(
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


async def test_demo_server_uses_the_head_weights(
    tiny_model: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        await show(tiny_model("gpt2"), "", tmp_path / "nothing.json")
    assert ended.value.code == 2
    assert "--head-weights" in (said := capfd.readouterr().err)
    assert "nothing.json: cannot be read" in said


async def test_the_demos_own_collector_is_not_switched_off(
    tiny_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert await show(tiny_model("gpt2")) == 0
    told = capfd.readouterr().out
    assert "not used, as the demo collects its spans itself: OTEL_SDK_DISABLED, OTEL_TRA" in told
    assert "decode_step" in told


def test_missing_spans_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    _print_spans([])
    assert "no generation's spans arrived in time" in capsys.readouterr().out


def test_whence_endpoint_variable_overrides_the_opentelemetry_variables() -> None:
    both = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "WHENCE_OTLP_ENDPOINT": "http://b:1"}
    assert find_collector(both) == "http://b:1"
    assert find_collector({"OTEL_TRACES_EXPORTER": "otlp"}) is None


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--jaeger-url", "http://localhost:16686"], {}, "does not say where the trace id goes"),
        (["--trace-url", "http://h/{trace_id}"], {}, "needs a collector of your own"),
        ([], {"WHENCE_TRACE_URL": "http://h/{trace_id}"}, "needs a collector of your own"),
        (["serve", "--trace-url", "http://h/{trace_id}"], {}, "does not go with serve"),
    ],
)
def test_trace_url_without_a_collector_is_refused_before_training(
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
