"""What goes on inside a model, worked out from transformers' own eager attention in float64."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache

# Where each architecture keeps the output projection of a layer that attends, by its own names.
PROJECTIONS: dict[str, str] = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
    "opt": "model.decoder.layers.{}.self_attn.out_proj",
    "opt_post_norm": "model.decoder.layers.{}.self_attn.out_proj",
    "phi": "model.layers.{}.self_attn.dense",
    "lfm2": "model.layers.{}.self_attn.out_proj",
    "nemotron_h": "model.layers.{}.mixer.o_proj",
    "zamba2": "model.layers.{}.shared_transformer.self_attn.o_proj",
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
        "llama",
        "llama4",
        "minimax",
        "mistral",
        "mixtral",
        "olmo_hybrid",
        "qwen2",
        "qwen2_moe",
        "qwen3",
    ),
    "model.layers.{}.self_attn.o_proj",
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
    """The model as transformers has it, with the attention that gives its weights."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def attentions_and_values(
    model: Any, token_ids: Sequence[int]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Of each layer that attends, weights [heads, T, T] and values [value heads, T, head size]."""
    values: dict[int, torch.Tensor] = {}
    update = Cache.update

    def spied(cache: Cache, keys: torch.Tensor, new: torch.Tensor, layer: int, *others: Any) -> Any:
        # As they are written: a layer with a window does not keep them all.
        values[layer] = new[0].double()
        return update(cache, keys, new, layer, *others)

    with mock.patch.object(Cache, "update", spied):
        output = model(input_ids=torch.tensor([token_ids]), use_cache=True, output_attentions=True)
    attentions = [a[0].double() for a in output.attentions]
    if len(attentions) > len(values):
        # MiniMax has something to show of the others, too.
        attentions = [attentions[layer] for layer in values]
    return attentions, list(values.values())


def output_projections(architecture: str, model: Any) -> list[torch.nn.Module]:
    """Of the layers that attend."""
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    places = (
        PROJECTIONS[architecture].format(layer) for layer in range(model.config.num_hidden_layers)
    )
    return [model.get_submodule(place) for place in places if place in names]


def shares(architecture: str, model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """[T, T]: what each position, as the newest, drew on; straight from the definition."""
    attentions, values = attentions_and_values(model, token_ids)
    total = torch.zeros(len(token_ids), len(token_ids), dtype=torch.float64)
    projections = output_projections(architecture, model)
    for attention, value, projection in zip(attentions, values, projections, strict=True):
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
    """[layers, T, V]: of the model itself, with all layers beyond each one left out."""
    layers = list(model.get_submodule(LAYERS.get(architecture, "model.layers")))
    found = []
    for last in range(len(layers)):
        with _left_out(layers[last + 1 :]):
            output = model(input_ids=torch.tensor([token_ids]), use_cache=False)
        found.append(output.logits[0].float())
    return torch.stack(found)


@contextmanager
def _left_out(layers: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Lets layers compute, and then hands on what they were given."""

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
