"""Information flow, compared with the paper's formulas written out for one architecture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from explained import explained_model, ignore_progress, target_of
from tiny_models import ARCHITECTURES, HYBRIDS, LAST_STAGES
from transformers import AutoModelForCausalLM

from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.explain import layer_flow
from whence_server.explain.decomposition import decompose
from whence_server.explain.flow import FlowOptions, FlowShares, trace_flow
from whence_server.explain.target import Target

TinyModel = Callable[..., Path]
FLOWING = [
    "gpt2",
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "opt",
    "gpt_neox",
    "phi",
    "gemma2",
    "gemma3",
    "mixtral",
    "qwen2_moe",
    "llama4",
    "granite",
    "cohere",
]
WITHOUT_FLOW = [name for name in ARCHITECTURES + LAST_STAGES + HYBRIDS if name not in FLOWING]


def total_of(found: FlowShares) -> float:
    return sum(found.scores) + found.span_share


@pytest.mark.parametrize("architecture", FLOWING)
def test_flow_sums_to_one(tiny_model: TinyModel, architecture: str) -> None:
    model = explained_model(tiny_model(architecture))
    for target in (target_of(20), target_of(20, 3), target_of(20, 1, (5,)), target_of(9, 2, (5,))):
        found = trace_flow(model, target, FlowOptions(), ignore_progress)
        assert total_of(found) == pytest.approx(1, abs=1e-9)
        assert min(found.scores) >= 0
        assert found.left_out == pytest.approx(0, abs=1e-6)
        # It comes from more than one place.
        assert max(found.scores) < 0.99


@pytest.mark.parametrize("architecture", WITHOUT_FLOW)
def test_layers_that_move_information_otherwise_are_refused(
    tiny_model: TinyModel, architecture: str
) -> None:
    model = explained_model(tiny_model(architecture))
    with pytest.raises(UnavailableError, match=r"layer|residual stream"):
        trace_flow(model, target_of(9), FlowOptions(), ignore_progress)


def proximity(part: torch.Tensor, whole: torch.Tensor) -> float:
    return max(float(whole.abs().sum() - (whole - part).abs().sum()), 0.0)


@torch.no_grad()
def divide_in_llama(directory: Path, ids: tuple[int, ...]) -> list[torch.Tensor]:
    """Return each layer's division of flow, [T, T], from the formulas of the paper."""
    model = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    output = model(input_ids=torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    num = len(ids)
    matrices = []
    for index, layer in enumerate(model.model.layers):
        stream = output.hidden_states[index][0]
        attention = layer.self_attn
        values = attention.v_proj(layer.input_layernorm(stream))  # (T, value heads * size)
        weights = output.attentions[index][0]  # (heads, T, T)
        num_heads, size = weights.shape[0], attention.head_dim
        matrix = torch.zeros(num, num, dtype=torch.float64)
        for i in range(num):
            parts = {}
            for head in range(num_heads):
                rows = attention.o_proj.weight[:, head * size : (head + 1) * size]
                group = head // (num_heads // (values.shape[1] // size))
                for j in range(i + 1):
                    value = values[j, group * size : (group + 1) * size]
                    parts[head, j] = float(weights[head, i, j]) * (rows @ value)
            whole = stream[i] + torch.stack(list(parts.values())).sum(0)
            near = {key: proximity(part, whole) for key, part in parts.items()}
            kept = proximity(stream[i], whole)
            total = kept + sum(near.values())
            matrix[i, i] += kept / total
            for (_, j), amount in near.items():
                matrix[i, j] += amount / total
        matrices.append(matrix)
    return matrices


def roll(matrices: list[torch.Tensor], flow: torch.Tensor) -> torch.Tensor:
    for matrix in reversed(matrices):
        flow = flow @ matrix
    return flow


@pytest.mark.parametrize("num_span", [1, 3])
def test_flow_is_that_of_the_papers_formulas(
    tiny_model: TinyModel, num_span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = explained_model(tiny_model("llama"))
    target = target_of(9, num_span)
    matrices = divide_in_llama(tiny_model("llama"), target.ids[:-1])
    flow = torch.zeros(len(target.ids) - 1, dtype=torch.float64)
    flow[8:] = 1 / num_span
    expected = roll(matrices, flow)
    monkeypatch.setattr(layer_flow, "MAX_BLOCK_FLOATS", 5000)  # several blocks
    found = trace_flow(model, target, FlowOptions(), ignore_progress)
    assert found.scores == pytest.approx(expected[:9].tolist(), abs=1e-5)
    assert found.span_share == pytest.approx(float(expected[9:].sum()), abs=1e-5)


def test_flow_at_generated_tokens_starts_again(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    ids = target_of(10, 2).ids
    target = Target(ids, 10, 6)
    matrices = divide_in_llama(tiny_model("llama"), ids[:-1])
    flow = torch.zeros(11, dtype=torch.float64)
    flow[9:] = 0.5
    first = roll(matrices, flow)
    again = torch.zeros(11, dtype=torch.float64)
    again[5:10] = first[6:]
    kept = torch.where(torch.arange(11) < 6, first, 0)
    expected = kept + roll(matrices, again)
    found = trace_flow(model, target, FlowOptions(num_hops=1), ignore_progress)
    assert found.scores == pytest.approx(expected[:10].tolist(), abs=1e-5)
    assert total_of(found) == pytest.approx(1, abs=1e-9)
    assert sum(found.scores[:6]) > float(first[:6].sum())


def test_few_pairs_leave_out_what_is_short(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    target = target_of(40)
    whole = trace_flow(model, target, FlowOptions(), ignore_progress)
    some = trace_flow(model, target, FlowOptions(pairs_per_head=16), ignore_progress)
    assert 0 < some.left_out < 0.5
    assert total_of(some) == pytest.approx(1, abs=1e-9)
    difference = sum(abs(a - b) for a, b in zip(whole.scores, some.scores, strict=True))
    assert 0 < difference < 0.5


def test_a_contrast_of_single_tokens_starts_at_the_terms_of_the_difference(
    tiny_model: TinyModel,
) -> None:
    model = explained_model(tiny_model("llama"))
    target = target_of(9, 1, (5,))
    matrices = divide_in_llama(tiny_model("llama"), target.context)
    found = trace_flow(model, target, FlowOptions(), ignore_progress)
    terms = decompose(model, target, ignore_progress)
    starts = start_apart_in_llama(tiny_model("llama"), target, terms.total)
    flow = torch.zeros(9, dtype=torch.float64)
    for index in reversed(range(3)):
        flow[8] += nearness(terms.mlps[index], terms.total)
        flow = flow @ matrices[index] + starts[index]
    flow[8] += nearness(terms.embedding, terms.total)
    expected = flow / flow.sum()
    assert found.scores == pytest.approx(expected.tolist(), abs=1e-4)


def nearness(term: float, total: float) -> float:
    return max(abs(total) - abs(total - term), 0.0)


@torch.no_grad()
def start_apart_in_llama(directory: Path, target: Target, total: float) -> list[torch.Tensor]:
    """Return for each layer the flow that starts at each position because of the heads' terms."""
    model: Any = AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    model.eval()
    ids = torch.tensor([target.context])
    seen: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    output = model(input_ids=ids, output_attentions=True, output_hidden_states=True)
    handle.remove()
    last = seen[0][0, -1]
    norm = model.model.norm
    scale = norm.weight / (last.square().mean() + norm.variance_epsilon).sqrt()
    rows = model.lm_head.weight
    direction = scale * (rows[target.span[0]] - rows[target.against[0]])
    starts = []
    for index, layer in enumerate(model.model.layers):
        stream = output.hidden_states[index][0]
        attention = layer.self_attn
        values = attention.v_proj(layer.input_layernorm(stream))
        weights = output.attentions[index][0, :, -1]
        size = attention.head_dim
        flow = torch.zeros(len(target.context), dtype=torch.float64)
        for head in range(weights.shape[0]):
            group = head // (weights.shape[0] // (values.shape[1] // size))
            projected = attention.o_proj.weight[:, head * size : (head + 1) * size]
            for j in range(len(flow)):
                part = projected @ values[j, group * size : (group + 1) * size]
                flow[j] += nearness(float(weights[head, j] * (part @ direction)), total)
        starts.append(flow)
    return starts


def test_a_models_own_attention_is_needed(tiny_model: TinyModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()
    with pytest.raises(UnavailableError, match="attention code of its own"):
        trace_flow(model, target_of(9), FlowOptions(), ignore_progress)


def test_random_weights_change_the_flow(tiny_model: TinyModel) -> None:
    one, other = (
        trace_flow(
            explained_model(tiny_model("llama", seed)), target_of(9), FlowOptions(), ignore_progress
        )
        for seed in (0, 1)
    )
    assert all(a != b for a, b in zip(one.scores, other.scores, strict=True))


def test_progress_counts_layers_and_ends_the_work(tiny_model: TinyModel) -> None:
    seen: list[tuple[int, int]] = []

    def stop_after_two(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise InterruptedError

    model = explained_model(tiny_model("llama"))
    with pytest.raises(InterruptedError):
        trace_flow(model, target_of(9), FlowOptions(), stop_after_two)
    assert seen == [(0, 3), (1, 3), (2, 3)]
    for module in model.modules():
        assert "forward" not in vars(module)
