"""What goes on inside a model, worked out from transformers' own eager attention in float64."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

# Where each architecture keeps a layer's output projection, by its own names.
PROJECTIONS: dict[str, str] = {
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
    "opt": "model.decoder.layers.{}.self_attn.out_proj",
    "opt_post_norm": "model.decoder.layers.{}.self_attn.out_proj",
    "phi": "model.layers.{}.self_attn.dense",
} | dict.fromkeys(
    (
        "cohere",
        "gemma2",
        "gemma3",
        "granite",
        "llama",
        "mistral",
        "mixtral",
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
    """Each layer's attention weights [heads, T, T] and values [value heads, T, head size]."""
    # Without a config it keeps every position, also those that a window has left behind.
    kept = DynamicCache()
    output = model(
        input_ids=torch.tensor([token_ids]),
        past_key_values=kept,
        use_cache=True,
        output_attentions=True,
    )
    return [a[0].double() for a in output.attentions], [v[0].double() for _, v, *_ in kept]


def shares(architecture: str, model: Any, token_ids: Sequence[int]) -> torch.Tensor:
    """[T, T]: what each position, as the newest, drew on; straight from the definition."""
    attentions, values = attentions_and_values(model, token_ids)
    total = torch.zeros(len(token_ids), len(token_ids), dtype=torch.float64)
    for layer, (attention, value) in enumerate(zip(attentions, values, strict=True)):
        projection = model.get_submodule(PROJECTIONS[architecture].format(layer))
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
