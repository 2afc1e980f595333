"""Output of `make demo` on the real model, and of `make demo-training` on a tiny one."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from whence_server.demo.model import ensure_demo_model
from whence_server.demo.real_model import NAME, read_digests
from whence_server.demo.serving import find_collector
from whence_server.demo.show import show
from whence_server.demo.spans import print_spans
from whence_server.demo.training_show import show_training


async def test_the_show_gives_a_true_answer_and_says_why(
    real_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    await show(real_model)
    told = capfd.readouterr().out
    for digest in read_digests(real_model).values():
        assert f"SHA-256 {digest}" in told
    answer, why, drawn, spans = re.split(
        r"^(?:Why |The same question|Where the spans went)", told, flags=re.MULTILINE
    )
    texts = re.findall(r'^ +0/\d+  "(.*?)" ', answer, re.MULTILINE)
    assert "".join(texts[:7]) == "The capital of France is Paris."
    # The record of the one token that the answer is about.
    assert why.startswith('" Paris"?')
    assert re.findall(r"^ +0/(\d+) ", why, re.MULTILINE) == ["5"]
    assert "drew on" in why
    assert re.search(r' 26-29  " Paris" +9[0-9.]+% <$', why, re.MULTILINE)
    assert 'the same 6 tokens, "The capital of France is Paris", and then part:' in drawn
    assert re.search(r'^  seed 2   "." .* over ","$', drawn, re.MULTILINE)
    assert re.search(r'^  seed 13  "," .* over "."$', drawn, re.MULTILINE)
    assert drawn.count("The capital of France is Paris") == 3
    assert f"chat {NAME}" in spans
    assert "decode_step" in spans
    assert "What to try next" in spans


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
    await show_training(tiny_model("gpt2"), trace_url)
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
        await show_training(tiny_model("gpt2"), "", tmp_path / "nothing.json")
    assert ended.value.code == 2
    assert "--head-weights" in (said := capfd.readouterr().err)
    assert "nothing.json: cannot be read" in said


async def test_the_training_show_explains_a_text_by_the_record(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "vocab_size": 512,
        "config_override": ("n_layer=1", "n_head=2", "n_embd=32"),
        "block_size": 256,
        "batch_size": 2,
        "max_steps": 10,
        "save_steps": 5,
        "warmup_steps": 2,
        "learning_rate": 1e-2,
    }
    await show_training(ensure_demo_model(tmp_path, settings=settings))
    told = capfd.readouterr().out
    assert '$ whence training explain "The for statement" " is used to iterate' in told
    assert re.findall(r"^ +(\d+) +-\d+\.\d{3} ", told, re.MULTILINE) == ["0", "5", "10"]
    assert "largest change: +" in told
    assert "Where the spans went" in told


async def test_the_demos_own_collector_is_not_switched_off(
    tiny_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    await show_training(tiny_model("gpt2"))
    told = capfd.readouterr().out
    assert "not used, as the demo collects its spans itself: OTEL_SDK_DISABLED, OTEL_TRA" in told
    assert "decode_step" in told


def test_missing_spans_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    print_spans([])
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
        (["training", "--trace-url", "http://h/{trace_id}"], {}, "needs a collector of your own"),
        (["serve", "--trace-url", "http://h/{trace_id}"], {}, "does not go with serve"),
        (["serve-training", "--trace-url", "http://h/{trace_id}"], {}, "with serve-training"),
    ],
)
def test_trace_url_without_a_collector_is_refused_before_anything_is_made(
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
