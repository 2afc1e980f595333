"""Oracle of a model's internals, from transformers' eager attention in float64."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from transformers import AutoModelForCausalLM

# Name of the attention's output projection in each architecture.
PROJECTIONS: dict[str, str] = {
    "gpt2": "c_proj",
    "gpt_neox": "dense",
    "lfm2": "out_proj",
    "opt": "out_proj",
    "opt_post_norm": "out_proj",
    "phi": "dense",
} | dict.fromkeys(
    (
        "bamba",
        "cohere",
        "falcon_h1",
        "gemma2",
        "gemma3",
        "granite",
        "granitemoehybrid",
        "jamba",
        "kimi_linear",
        "llama",
        "llama4",
        "minimax",
        "mistral",
        "mixtral",
        "nemotron_h",
        "olmo_hybrid",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "zamba2",
    ),
    "o_proj",
)
LAYERS: dict[str, str] = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "opt_post_norm": "model.decoder.layers",
    "bloom": "transformer.h",
    "falcon": "transformer.h",
    "mamba": "backbone.layers",
    "mamba2": "backbone.layers",
    "rwkv": "rwkv.blocks",
}


@cache
def eager_model(directory: Path) -> Any:
    """Load a model with transformers' eager attention, which returns its weights."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


class Attending(NamedTuple):
    """Attention of one layer in one forward pass over all tokens.

    Attributes:
        module: the layer's attention.
        weights: [heads, T, T]
        values: [value heads, T, head size]
    """

    module: torch.nn.Module
    weights: torch.Tensor
    values: torch.Tensor


@torch.inference_mode()
def attending(model: Any, token_ids: Sequence[int]) -> list[Attending]:
    """Return the attention of each layer, from transformers' eager attention."""
    given: list[tuple[torch.nn.Module, torch.Tensor]] = []
    code = sys.modules[type(model).__module__]
    eager = code.eager_attention_forward

    def record_values(
        module: Any, query: Any, key: Any, value: torch.Tensor, *others: Any, **more: Any
    ) -> Any:
        given.append((module, value[0].double()))
        return eager(module, query, key, value, *others, **more)

    with mock.patch.object(code, "eager_attention_forward", record_values):
        output = model(input_ids=torch.tensor([token_ids]), use_cache=False, output_attentions=True)
    # MiniMax returns tensors of other shapes for its linear attention.
    square = (len(token_ids), len(token_ids))
    weights = [a[0].double() for a in output.attentions if a.shape[-2:] == square]
    return [
        Attending(module, of_layer, values)
        for (module, values), of_layer in zip(given, weights, strict=True)
    ]


def shares(architecture: str, model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the [T, T] source shares of each position as the newest, by their definition."""
    total = torch.zeros(len(token_ids), len(token_ids), dtype=torch.float64)
    for module, attention, value in attending(model, token_ids):
        projection = module.get_submodule(PROJECTIONS[architecture])
        weight = projection.weight.double()
        if isinstance(projection, torch.nn.Linear):
            weight = weight.T
        num_heads, size = attention.shape[0], value.shape[-1]
        for head in range(num_heads):
            of_head = value[head * len(value) // num_heads]  # (T, d)
            given = of_head @ weight[head * size : (head + 1) * size]  # (T, width)
            total += attention[head] * given.norm(dim=-1)
    return total / total.sum(-1, keepdim=True)


@torch.inference_mode()
def layer_logits(architecture: str, model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """Return [layers, T, V] logits of the model without the layers after each one."""
    layers = list(model.get_submodule(LAYERS.get(architecture, "model.layers")))
    found = []
    for last in range(len(layers)):
        with _leave_out(layers[last + 1 :]):
            output = model(input_ids=torch.tensor([token_ids]), use_cache=False)
        found.append(output.logits[0].float())
    return torch.stack(found)


@contextmanager
def _leave_out(layers: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Replace the output of layers by their input."""

    def given(
        _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handles = [layer.register_forward_hook(given, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


Directory = Callable[..., Path]
