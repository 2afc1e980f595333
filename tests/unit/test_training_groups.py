"""Every parameter is in one group, and in the right one, whatever an architecture calls things."""

import re

import pytest
import torch
from tiny_models import CONFIGS
from torch import nn
from transformers import AutoModelForCausalLM

from whence_server.training.recording.groups import group_parameters

# By hand: what of each architecture's layers mixes positions (and the norm before it).
ATTENTION = {
    "gpt2": r"ln_1|attn",
    "llama": r"self_attn|input_layernorm",
    "mixtral": r"self_attn|input_layernorm",
    "opt": r"self_attn|self_attn_layer_norm",
    "mamba": r"mixer|norm",
    "bloom": r"self_attention|input_layernorm",
    "gemma2": r"self_attn|input_layernorm|post_attention_layernorm",
    "jamba": r"mamba|self_attn|input_layernorm",
    "rwkv": r"attention|ln1|pre_ln",
    "gpt_neox": r"attention|input_layernorm",
}
EMBEDDING = {
    "gpt2": {"transformer.wte.weight", "transformer.wpe.weight"},
    "opt": {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"},
    "bloom": {
        "transformer.word_embeddings.weight",
        "transformer.word_embeddings_layernorm.weight",
        "transformer.word_embeddings_layernorm.bias",
    },
}


@pytest.mark.parametrize("architecture", [name for name in ATTENTION if name in CONFIGS])
def test_parameters_are_grouped_by_layer_and_half(architecture: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[architecture])
    groups = {group.name: group for group in group_parameters(model)}
    names = [name for group in groups.values() for name in group.parameter_names]
    assert sorted(names) == sorted(dict(model.named_parameters()))
    assert sum(g.num_parameters for g in groups.values()) == model.num_parameters()
    assert set(names) <= set(model.state_dict())
    num_layers = model.config.num_hidden_layers
    expected = ["embedding"]
    for layer in range(num_layers):
        halves = ["attention"] if architecture == "mamba" else ["attention", "mlp"]
        expected += [f"layer.{layer}.{half}" for half in halves]
    expected += ["final_norm"]
    tied = getattr(model.config, "tie_word_embeddings", False)
    assert list(groups) == expected + ["head"] * (not tied)
    for layer in range(num_layers):
        for half in groups.keys() & {f"layer.{layer}.attention", f"layer.{layer}.mlp"}:
            for name in groups[half].parameter_names:
                child = re.search(rf"\.{layer}\.(\w+)", name)
                assert child is not None
                is_attention = re.fullmatch(ATTENTION[architecture], child[1]) is not None
                assert is_attention == half.endswith("attention"), name
    assert EMBEDDING.get(architecture, set()) <= set(groups["embedding"].parameter_names)


def test_any_module_has_groups() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.LayerNorm(3))
    groups = [(g.name, g.num_parameters, g.parameter_names) for g in group_parameters(model)]
    assert groups == [
        ("embedding", 12, ["0.weight"]),
        ("final_norm", 6, ["2.weight", "2.bias"]),
        ("other", 12, ["1.weight", "1.bias"]),
    ]
