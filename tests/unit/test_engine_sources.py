"""Value norms: compared with their definition, and computed once for each position."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from whence_server.domain.steps import Candidates, Decision
from whence_server.engines.transformers.batching_check import check_batching
from whence_server.engines.transformers.internals import attention
from whence_server.engines.transformers.internals.lens import Lens, build_lens
from whence_server.engines.transformers.internals.probe import collect_activations
from whence_server.engines.transformers.internals.probe_building import build_probe
from whence_server.engines.transformers.internals.sources import (
    COLUMNS_TOGETHER,
    OutputNorms,
    Reading,
    Sources,
    list_sources,
)
from whence_server.engines.transformers.runner import Runner

LAYERS, HEADS, SIZE, WIDTH = 3, 4, 6, 24


def a_model(num_value_heads: int) -> tuple[list[torch.Tensor], Callable[[int], list[torch.Tensor]]]:
    """Return output projections, and a function that gives values of any number of positions."""
    random = torch.Generator().manual_seed(0)
    projections = [torch.randn(HEADS, SIZE, WIDTH, generator=random) for _ in range(LAYERS)]
    return projections, lambda count: [
        torch.randn(num_value_heads, count, SIZE, generator=random) for _ in range(LAYERS)
    ]


@pytest.mark.parametrize("count", [1, 5, COLUMNS_TOGETHER // 2, COLUMNS_TOGETHER + 1])
@pytest.mark.parametrize("num_value_heads", [1, 2, 4])
def test_norms_are_those_of_the_projected_values(num_value_heads: int, count: int) -> None:
    projections, values_of = a_model(num_value_heads)
    values = values_of(count)
    thetas = [[float(layer + head) for head in range(HEADS)] for layer in range(LAYERS)]
    expected = torch.stack(
        [
            thetas[layer][head]
            / 5.0
            * (values[layer][head * num_value_heads // HEADS] @ projections[layer][head]).norm(
                dim=-1
            )
            for layer in range(LAYERS)
            for head in range(HEADS)
        ]
    )
    # Of one scale or another, what heads weigh against each other is the same.
    for scale in (1.0, 1e-38, 6e37):
        scaled = [[theta * scale for theta in layer] for layer in thetas]
        norms = OutputNorms(projections, num_value_heads, scaled).compute(values)
        torch.testing.assert_close(norms, expected, rtol=1e-4, atol=1e-5)


def test_zero_contributions_give_no_sources() -> None:
    nothing = Reading(torch.zeros(1, 5), torch.zeros(1, 5, dtype=torch.bool))
    assert list_sources(nothing, [5]) == [Sources([], [], None)]


def runner_of(directory: Path) -> Runner:
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    attention.adopt(model)
    style = check_batching(model)
    assert style is not None
    probe, info = build_probe(model, style, None, None)
    assert not info.unavailable
    return Runner(model, style, None, probe)


@pytest.mark.parametrize("chunk", [7, 30])
def test_norms_of_a_position_are_computed_once(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    runner = runner_of(tiny_model("llama"))
    num_columns: list[int] = []
    original = OutputNorms.compute

    def counting(self: OutputNorms, values: Sequence[torch.Tensor]) -> torch.Tensor:
        num_columns.append(values[0].shape[1])
        return original(self, values)

    monkeypatch.setattr(OutputNorms, "compute", counting)
    prompt = runner.start(list(range(30)), probed=True)
    while prompt.num_left:
        runner.prefill(prompt, min(chunk, prompt.num_left), all_logits=False)
    runner.join(prompt, 2)
    assert sum(num_columns) == 30
    assert max(num_columns) == chunk, "with the piece that was read, and not all at the end"
    runner.decode([1, 2])
    runner.read_probe()
    assert num_columns[-1] == 2
    assert sum(num_columns) == 32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_probed_pass_keeps_only_the_newest_tokens_outputs(
    tiny_model: Callable[..., Path], architecture: str, dtype: torch.dtype
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=dtype).eval()
    attention.adopt(model)
    probe, _ = build_probe(model, check_batching(model), None, None)
    with torch.inference_mode(), collect_activations(probe) as buffer:
        model(input_ids=torch.arange(30).unsqueeze(0), use_cache=True)
    assert len(buffer.outputs) == len(buffer.weights) == 3
    for output in buffer.outputs:
        assert output.untyped_storage().nbytes() == output.nbytes
    for weights in buffer.weights:
        assert weights.untyped_storage().nbytes() == weights.nbytes
        # In half precision too: bfloat16 would round each to three digits.
        torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4), rtol=0, atol=1e-6)


def a_decision(token_id: int, candidates: list[int]) -> Decision:
    listed = Candidates(candidates, [-1.0] * len(candidates), []) if candidates else None
    return Decision(token_id, -1.0, candidates=listed)


def test_the_lens_reads_only_decisions_with_candidates(tiny_model: Callable[..., Path]) -> None:
    lens = build_lens(AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval())
    read: list[int] = []

    class Counting(Lens):
        def compute_logits(self, hidden: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
            read.append(len(hidden))
            return lens.compute_logits(hidden, token_ids)

    hidden = torch.randn(3, 3, 48)
    counting = Counting(lens.layers, None)
    assert counting.read(hidden, [a_decision(5, [])] * 3) == [None] * 3
    assert read == []
    first, second, third = counting.read(
        hidden, [a_decision(5, []), a_decision(5, [5, 6]), a_decision(5, [])]
    )
    assert first is third is None
    assert read == [1]
    (alone,) = counting.read(hidden[1:2], [a_decision(5, [5, 6])])
    assert second == alone


def test_layers_of_different_value_heads_give_no_sources(
    tiny_model: Callable[..., Path],
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()
    attention.adopt(model)
    style = check_batching(model)
    # The last layer's two become four, which say the same.
    last = model.model.layers[-1].self_attn
    for projection in (last.k_proj, last.v_proj):
        rows = projection.weight.unflatten(0, (2, -1)).repeat_interleave(2, 0).flatten(0, 1)
        projection.weight = torch.nn.Parameter(rows, requires_grad=False)
    last.num_key_value_groups = 1
    probe, info = build_probe(model, style, None, None)
    assert probe.norms is None
    assert info.unavailable == {"sources": "its layers keep different numbers of value heads"}


def test_unusable_norms_are_found_at_load(
    tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()
    attention.adopt(model)
    style = check_batching(model)
    monkeypatch.setattr(OutputNorms, "compute", lambda _self, values: torch.zeros(5, len(values)))
    probe, info = build_probe(model, style, None, None)
    assert probe.norms is None
    assert "its attention cannot be read" in info.unavailable["sources"]
