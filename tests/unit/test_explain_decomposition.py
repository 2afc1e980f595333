"""Decomposition of a logit, compared with the model's own logits and with ablated heads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from explained import explained_model, ignore_progress, logits_after, target_of
from tiny_models import ARCHITECTURES, HYBRIDS, LAST_STAGES

from whence_server.engines.transformers.internals.layers import find_layers
from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.explain.decomposition import Decomposition, decompose
from whence_server.explain.target import Target

TinyModel = Callable[..., Path]
WITHOUT_HEADS = {"mamba", "mamba2", "rwkv", "zamba2"}
"""Architectures without attention, or with attention that several layers share."""


ENDS = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "granite": ("self_attn.o_proj", "mlp.down_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "falcon": ("self_attention.dense", "mlp.dense_4h_to_h"),
}
"""Last linear modules of a layer's attention and of its MLP."""


def sum_sizes(found: Decomposition) -> float:
    """Return the sum of the terms' absolute values, which rounding is proportional to."""
    terms = [found.embedding, found.norm_bias, found.head_bias]
    terms += [*found.attention_rests, *found.mlps, *(x for layer in found.heads for x in layer)]
    return sum(map(abs, terms))


@pytest.mark.parametrize("architecture", ARCHITECTURES + LAST_STAGES + HYBRIDS)
def test_terms_add_up_to_the_models_logit(tiny_model: TinyModel, architecture: str) -> None:
    model = explained_model(tiny_model(architecture))
    target = target_of(20)
    found = decompose(model, target, ignore_progress)
    logit = float(logits_after(model, target.context)[target.span[0]])
    noise = 2e-5 * (1 + sum_sizes(found))
    assert found.total == pytest.approx(logit, abs=noise)
    assert found.value == pytest.approx(logit, abs=noise)
    assert abs(found.residual) < noise
    assert found.embedding
    assert len(found.mlps) == len(found.attention_rests) == len(find_layers(model))
    assert bool(found.heads) == (architecture not in WITHOUT_HEADS)


@pytest.mark.parametrize("architecture", ENDS)
def test_a_head_adds_its_term_to_the_stream_before_the_final_norm(
    tiny_model: TinyModel, architecture: str
) -> None:
    model = explained_model(tiny_model(architecture))
    target = target_of(10)
    found = decompose(model, target, ignore_progress)
    norm = find_final_norm(model)
    recorded = record_outputs(model, architecture, target)
    whole = read_final_stream(model, architecture, target, recorded, None)
    scale = read_scale(norm, whole)
    row = model.get_output_embeddings().weight[target.span[0]]
    for layer in (0, 2):
        for head in (0, 3):
            without = read_final_stream(model, architecture, target, recorded, (layer, head))
            change = float(row @ (scale * center(norm, whole - without)))
            change /= getattr(model.config, "logits_scaling", 1.0)
            assert found.heads[layer][head] == pytest.approx(change, rel=1e-3, abs=1e-5)


def find_final_norm(model: Any) -> Any:
    """Return the last norm that is in no layer."""
    inside = {module for layer in find_layers(model) for module in layer.modules()}
    norms = [each for each in model.modules() if "Norm" in type(each).__name__]
    return [norm for norm in norms if norm not in inside][-1]


def center(norm: Any, vector: torch.Tensor) -> torch.Tensor:
    return vector - vector.mean() if isinstance(norm, torch.nn.LayerNorm) else vector


def read_scale(norm: Any, stream: torch.Tensor) -> torch.Tensor:
    """Return the norm's weight divided by the stream's spread."""
    eps = norm.eps if isinstance(norm, torch.nn.LayerNorm) else norm.variance_epsilon
    scale: torch.Tensor = norm.weight / (center(norm, stream).square().mean() + eps).sqrt()
    return scale


def list_ends(model: Any, architecture: str) -> list[tuple[int, bool, Any]]:
    """Return the last linear module of each branch, with its layer; True for attention."""
    return [
        (index, name == ENDS[architecture][0], layer.get_submodule(name))
        for index, layer in enumerate(find_layers(model))
        for name in ENDS[architecture]
    ]


@torch.no_grad()
def record_outputs(model: Any, architecture: str, target: Target) -> dict[Any, torch.Tensor]:
    """Return what each branch added, in a whole pass."""
    recorded: dict[Any, torch.Tensor] = {}
    handles = [
        end.register_forward_hook(
            lambda module, _args, output: recorded.__setitem__(module, output.clone())
        )
        for _, _, end in list_ends(model, architecture)
    ]
    model(input_ids=torch.tensor([target.context]))
    for handle in handles:
        handle.remove()
    return recorded


@torch.no_grad()
def read_final_stream(
    model: Any,
    architecture: str,
    target: Target,
    recorded: dict[Any, torch.Tensor],
    zeroed: tuple[int, int] | None,
) -> torch.Tensor:
    """Return the final norm's input at the last position, [width], without one head.

    All other heads and MLPs add what they added in the whole pass.
    """
    handles = []
    for index, is_attention, end in list_ends(model, architecture):
        head = zeroed[1] if zeroed and zeroed[0] == index and is_attention else None

        def replace(
            module: Any, args: Any, _output: torch.Tensor, head: int | None = head
        ) -> torch.Tensor:
            if head is None:
                return recorded[module].clone()
            size = args[0].shape[-1] // model.config.num_attention_heads
            alone = torch.zeros_like(args[0])
            alone[..., head * size : (head + 1) * size] = args[0][..., head * size :][..., :size]
            return recorded[module] - (module(alone) - module(torch.zeros_like(alone)))

        handles.append((end, replace))
    seen: list[torch.Tensor] = []
    removable = [find_final_norm(model).register_forward_pre_hook(lambda _m, a: seen.append(a[0]))]
    removable += [end.register_forward_hook(guard(replace)) for end, replace in handles]
    model(input_ids=torch.tensor([target.context]))
    for handle in removable:
        handle.remove()
    return seen[-1][0, -1]


def guard(hook: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor | None]:
    """Return the hook without its effect on the calls that it makes itself."""
    active: list[None] = []

    def call(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        if active:
            return None
        active.append(None)
        try:
            return hook(module, args, output)
        finally:
            active.pop()

    return call


def test_a_span_is_the_sum_of_its_tokens(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    target = target_of(9, 3)
    found = decompose(model, target, ignore_progress)
    singles = [
        decompose(model, Target(target.ids[: i + 1], i, 9), ignore_progress) for i in (9, 10, 11)
    ]
    assert found.total == pytest.approx(sum(one.total for one in singles), abs=1e-4)
    assert found.embedding == pytest.approx(sum(one.embedding for one in singles), abs=1e-4)
    for layer in range(3):
        for head in range(4):
            expected = sum(one.heads[layer][head] for one in singles)
            assert found.heads[layer][head] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("against", [(5,), (5, 6)])
def test_a_contrast_is_a_difference(tiny_model: TinyModel, against: tuple[int, ...]) -> None:
    model = explained_model(tiny_model("gpt2"))
    target = target_of(9, 1)
    apart = decompose(model, Target(target.ids, 9, 9, against), ignore_progress)
    other = decompose(model, Target((*target.context, *against), 9, 9), ignore_progress)
    own = decompose(model, target, ignore_progress)
    assert apart.value == pytest.approx(own.value - other.value, abs=1e-4)
    assert apart.mlps == pytest.approx(
        [a - b for a, b in zip(own.mlps, other.mlps, strict=True)], abs=1e-4
    )
    assert apart.norm_bias == pytest.approx(own.norm_bias - other.norm_bias, abs=1e-4)


def test_biases_of_norm_and_head_are_terms_of_their_own(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("phi"))
    target = target_of(9)
    found = decompose(model, target, ignore_progress)
    head = model.get_output_embeddings()
    row = head.weight[target.span[0]]
    assert found.head_bias == pytest.approx(float(head.bias[target.span[0]]), abs=1e-6)
    expected = float(row @ model.model.final_layernorm.bias)
    assert found.norm_bias == pytest.approx(expected, abs=1e-5)


def test_layers_that_are_no_sums_are_refused(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("llama"))
    model.model.layers[1].register_forward_hook(lambda _layer, _args, output: output.sin())
    with pytest.raises(UnavailableError, match="not a sum of branches"):
        decompose(model, target_of(9), ignore_progress)


def test_random_weights_change_every_term(tiny_model: TinyModel) -> None:
    target = target_of(9)
    one, other = (
        decompose(explained_model(tiny_model("llama", seed)), target, ignore_progress)
        for seed in (0, 1)
    )
    assert all(a != b for a, b in zip(one.mlps, other.mlps, strict=True))
    assert one.embedding != other.embedding


def test_the_model_is_left_as_it_was(tiny_model: TinyModel) -> None:
    model = explained_model(tiny_model("gemma2"))
    target = target_of(9)
    before = logits_after(model, target.context)
    decompose(model, target, ignore_progress)
    assert torch.equal(logits_after(model, target.context), before)
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks


def test_progress_ends_the_work(tiny_model: TinyModel) -> None:
    def cancel(_done: int, _total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        decompose(explained_model(tiny_model("gpt2")), target_of(9), cancel)


def test_a_real_models_logit_is_the_sum_of_its_terms(real_model: Path) -> None:
    model = explained_model(real_model)
    target = target_of(40)
    found = decompose(model, target, ignore_progress)
    logit = float(logits_after(model, target.context)[target.span[0]])
    assert found.total == pytest.approx(logit, abs=2e-5 * (1 + sum_sizes(found)))
    assert len(found.heads) == 30
    assert all(len(layer) == 9 for layer in found.heads)
