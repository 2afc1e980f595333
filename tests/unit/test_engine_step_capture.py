"""Captured steps: bit-identical with the model's modules, or not used."""

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BATCHED, LAST_STAGES
from transformers import AutoModelForCausalLM

from whence_server.domain.model import StepKernels
from whence_server.engines.transformers import packed_linears
from whence_server.engines.transformers.batching_check import check_batching
from whence_server.engines.transformers.internals import attention
from whence_server.engines.transformers.internals.probe import Activations
from whence_server.engines.transformers.internals.probe_building import build_probe
from whence_server.engines.transformers.packed_linears import ROUNDING
from whence_server.engines.transformers.runner import Runner
from whence_server.engines.transformers.step_capture import capture_step
from whence_server.engines.transformers.step_graph import StepGraph
from whence_server.engines.transformers.style import ForwardStyle

# The others decode each sequence by itself, or (Bloom) make their masks as they go.
RECORDABLE = sorted({*BATCHED, *LAST_STAGES} - {"bloom"})


@pytest.fixture(autouse=True)
def no_step_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make no step too long to capture, as other work on the machine slows steps."""
    monkeypatch.setattr("whence_server.engines.transformers.step_capture.LONG_STEP_S", float("inf"))


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
    monkeypatch.setattr("whence_server.engines.transformers.step_capture.LONG_STEP_S", 0.0)
    with caplog.at_level(logging.INFO):
        assert capture_step(model, style) is None
    assert "a graph would save little" in caplog.text


def test_a_model_with_a_padding_id_is_captured(
    load: Callable[..., tuple[Any, ForwardStyle]],
) -> None:
    model, style = load("llama")
    model.get_input_embeddings().padding_idx = 2
    graph = capture_step(model, style)
    assert graph is not None
    assert model.get_input_embeddings().padding_idx == 2
    ours, theirs = Runner(model, style, graph), Runner(model, style, None)
    for runner in (ours, theirs):
        prompt = runner.start([5, 2, 7])
        runner.prefill(prompt, 3, all_logits=False)
        runner.join(prompt)
    assert torch.equal(ours.decode([2]), theirs.decode([2]))


def test_time_on_a_busy_machine_does_not_make_a_step_long(
    load: Callable[..., tuple[Any, ForwardStyle]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, style = load("gpt2")
    decode = Runner.decode
    limit_s = 0.2

    def wait_too(self: Runner, token_ids: list[int]) -> torch.Tensor:
        if self.num_rows == 2:  # only while steps are timed, and once more
            time.sleep(limit_s)
        return decode(self, token_ids)

    monkeypatch.setattr("whence_server.engines.transformers.step_capture.LONG_STEP_S", limit_s)
    monkeypatch.setattr(Runner, "decode", wait_too)
    assert capture_step(model, style) is not None


def run_steps(runner: Runner) -> list[torch.Tensor]:
    """Return the logits of steps of rows that come one by one, the last of them probed."""
    found = []
    for length in (3, 9, 1, 5):
        prompt = runner.start(list(range(5, 5 + length)), probed=length == 5)
        runner.prefill(prompt, length, all_logits=False)
        runner.join(prompt)
        found.append(runner.decode(list(range(20, 20 + runner.num_rows))))
    readout = runner.read_probe()
    assert readout is not None
    assert readout.sources
    return found


def test_packed_weights_in_float32_differ_by_rounding_and_only_if_chosen(
    load: Callable[..., tuple[Any, ForwardStyle]],
) -> None:
    model, style = load("llama")
    probe, _ = build_probe(model, style, None, None)
    exact = capture_step(model, style, probe)
    packed = capture_step(model, style, probe, StepKernels.PACKED)
    assert exact is not None
    assert packed is not None
    assert not exact.packed
    assert packed.packed
    assert packed.has_probe
    expected = run_steps(Runner(model, style, None, probe))
    ours = run_steps(Runner(model, style, exact, probe))
    fast = run_steps(Runner(model, style, packed, probe))
    for plain, same, close in zip(expected, ours, fast, strict=True):
        assert torch.equal(same, plain)
        assert float((close - plain).abs().max()) <= ROUNDING * float(plain.abs().max())
    plain_rows = Runner(model, style, packed, probe)
    prompt = plain_rows.start([5, 6, 7])
    plain_rows.prefill(prompt, 3, all_logits=False)
    plain_rows.join(prompt)
    assert torch.equal(plain_rows.decode([20]), fast[0]), "a probe changes no bit"


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16"
)
def test_packed_weights_in_bfloat16_are_shared_by_graphs_and_give_the_same_bits(
    load: Callable[..., tuple[Any, ForwardStyle]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, style = load("llama", torch.bfloat16)
    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    graph = capture_step(model, style)
    assert graph is not None
    assert graph.packed
    kept = [packed_linears._packed[weight] for weight in weights]
    assert capture_step(model, style) is not None
    assert all(
        packed_linears._packed[weight] is one for weight, one in zip(weights, kept, strict=True)
    )
    monkeypatch.setattr(packed_linears, "MAX_COPIED_BYTES", 0)
    large = capture_step(model, style)
    assert large is not None
    assert not large.packed, "copies of a large model's weights would take too much memory"


def test_packed_weights_with_other_bits_are_not_used(
    load: Callable[..., tuple[Any, ForwardStyle]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, style = load("llama")
    # In float32 their bits differ, which only a bound above 0 allows.
    monkeypatch.setattr(packed_linears, "ROUNDING", 0.0)
    multiply = packed_linears._multiply
    monkeypatch.setattr(packed_linears, "_multiply", lambda *given: multiply(*given) * (1 + 1e-6))
    graph = capture_step(model, style, kernels=StepKernels.PACKED)
    assert graph is not None
    assert not graph.packed
