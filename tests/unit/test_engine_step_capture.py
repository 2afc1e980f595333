"""Captured steps: bit-identical with the model's modules, or not used."""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BATCHED, LAST_STAGES
from transformers import AutoModelForCausalLM

from whence_server.engine.batching_check import check_batching
from whence_server.engine.internals import attention
from whence_server.engine.internals.probe import Activations
from whence_server.engine.internals.probe_building import build_probe
from whence_server.engine.runner import Runner
from whence_server.engine.step_capture import capture_step
from whence_server.engine.step_graph import StepGraph
from whence_server.engine.style import ForwardStyle

# The others decode each sequence by itself, or (Bloom) make their masks as they go.
RECORDABLE = sorted({*BATCHED, *LAST_STAGES} - {"bloom"})


@pytest.fixture(autouse=True)
def no_step_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make no step too long to capture, as other work on the machine slows steps."""
    monkeypatch.setattr("whence_server.engine.step_capture.LONG_STEP_S", float("inf"))


@pytest.fixture
def load(tiny_model: Callable[..., Path]) -> Callable[..., tuple[Any, ForwardStyle]]:
    def get(architecture: str, dtype: torch.dtype = torch.float32) -> tuple[Any, ForwardStyle]:
        model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=dtype)
        attention.adopt(model.eval().requires_grad_(False))
        style = check_batching(model)
        assert style is not None
        return model, style

    return get


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", RECORDABLE)
def test_a_captured_step_is_bit_identical_while_rows_come_and_go(
    load: Callable[..., tuple[Any, ForwardStyle]], architecture: str, dtype: torch.dtype
) -> None:
    model, style = load(architecture, dtype)
    probe, _ = build_probe(model, style, None, None)
    graph = capture_step(model, style, probe)
    assert graph is not None
    ours, theirs = Runner(model, style, graph, probe), Runner(model, style, None, probe)
    choose = random.Random(3)
    for _ in range(60):
        if ours.num_rows < 2 or choose.random() < 0.2:
            prompt = [choose.randrange(400) for _ in range(choose.randint(1, 40))]
            count = choose.randint(1, 3)
            for runner in (ours, theirs):
                read = runner.start(prompt, probed=len(prompt) % 3 == 0)
                runner.prefill(read, len(prompt), all_logits=False)
                runner.join(read, count)
        elif choose.random() < 0.15:
            row = choose.randrange(ours.num_rows)
            ours.leave(row)
            theirs.leave(row)
        token_ids = [choose.randrange(400) for _ in range(ours.num_rows)]
        assert torch.equal(ours.decode(token_ids), theirs.decode(token_ids))
        seen, expected = ours.read_probe(), theirs.read_probe()
        assert (seen is None) == (expected is None)
        if seen is not None and expected is not None:
            assert (seen.rows, seen.sources) == (expected.rows, expected.sources)
            assert seen.hidden is not None
            assert expected.hidden is not None
            assert torch.equal(seen.hidden, expected.hidden)


def test_a_model_that_branches_on_its_tokens_is_not_captured(
    load: Callable[..., tuple[Any, ForwardStyle]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, style = load("gpt2")
    head = model.lm_head.forward

    def deciding(hidden: torch.Tensor) -> torch.Tensor:
        # Never so while it is recorded.
        return head(hidden) * 2 if float(hidden.abs().max()) > 1e6 else head(hidden)

    monkeypatch.setattr(model.lm_head, "forward", deciding)
    with caplog.at_level(logging.INFO):
        assert capture_step(model, style) is None
    assert "decodes through its modules" in caplog.text
    assert Path(__file__).name in caplog.text, "it says where the decision is taken"


def test_a_graph_with_other_logits_is_not_used(
    load: Callable[..., tuple[Any, ForwardStyle]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, style = load("gpt2")
    right = StepGraph.run
    calls = []

    def wrong_at_last(self: StepGraph, inputs: Any) -> torch.Tensor:
        calls.append(inputs)
        logits = right(self, inputs)
        return logits if len(calls) < 5 else logits.nextafter(torch.tensor(9.0))

    monkeypatch.setattr(StepGraph, "run", wrong_at_last)
    assert capture_step(model, style) is None
    assert "captured graph's logits differ" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_a_graph_with_other_activations_is_used_without_its_probe(
    load: Callable[..., tuple[Any, ForwardStyle]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: bool,
) -> None:
    model, style = load("llama")
    probe, _ = build_probe(model, style, None, None)
    right = StepGraph.run_probed

    def wrong(self: StepGraph, inputs: Any) -> tuple[torch.Tensor, Activations]:
        logits, seen = right(self, inputs)
        assert seen.hidden is not None
        if fails:
            raise ZeroDivisionError
        return logits, seen._replace(hidden=seen.hidden.nextafter(torch.tensor(9.0)))

    with monkeypatch.context() as patched:
        patched.setattr(StepGraph, "run_probed", wrong)
        graph = capture_step(model, style, probe)
    assert "is probed through its modules" in caplog.text
    assert graph is not None
    assert not graph.has_probe
    ours, theirs = Runner(model, style, graph, probe), Runner(model, style, None, probe)
    for probed in (False, True):
        for runner in (ours, theirs):
            prompt = runner.start([5, 6, 7], probed=probed)
            runner.prefill(prompt, 3, all_logits=False)
            runner.join(prompt)
        token_ids = [9] * ours.num_rows
        assert torch.equal(ours.decode(token_ids), theirs.decode(token_ids))
        seen, expected = ours.read_probe(), theirs.read_probe()
        assert (seen is not None) == (expected is not None) == probed
        if seen is not None and expected is not None:
            assert seen.sources == expected.sources


def test_a_model_without_a_probe_is_captured_once(
    load: Callable[..., tuple[Any, ForwardStyle]], monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []
    original = torch.jit.trace

    def counting(*args: Any, **kwargs: Any) -> Any:
        traced.append(args)
        return original(*args, **kwargs)

    model, style = load("llama")
    monkeypatch.setattr(torch.jit, "trace", counting)
    graph = capture_step(model, style)
    assert graph is not None
    assert not graph.has_probe
    assert len(traced) == 1


def test_a_long_step_is_not_captured(
    load: Callable[..., tuple[Any, ForwardStyle]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, style = load("gpt2")
    monkeypatch.setattr("whence_server.engine.step_capture.LONG_STEP_S", 0.0)
    with caplog.at_level(logging.INFO):
        assert capture_step(model, style) is None
    assert "a graph would save little" in caplog.text
