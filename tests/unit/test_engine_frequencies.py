"""Rotary modules that depend on length: detection, and the state of each sequence."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, LENGTH_DEPENDENT, LONGROPE, SHAPE
from transformers import AutoModelForCausalLM, LlamaConfig

from whence_server.engines.transformers import frequencies
from whence_server.engines.transformers.context import read_max_context_length


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.pad_token_id = None  # the default lies beyond the tiny vocabulary
    return AutoModelForCausalLM.from_config(config).eval()


def rotary(model: Any) -> Any:
    return model.model.rotary_emb


def turned(model: Any, *positions: int) -> torch.Tensor:
    cos, sin = rotary(model)(torch.zeros(1, 1, 48), torch.tensor([positions]))
    return torch.stack([cos, sin])


@pytest.mark.parametrize("architecture", LENGTH_DEPENDENT)
def test_length_dependent_modules_are_found_and_unchanged(architecture: str) -> None:
    model = model_of(CONFIGS[architecture])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    attributes = set(vars(rotary(model)))
    assert frequencies.find(model)
    assert set(vars(rotary(model))) == attributes
    after = dict(model.named_buffers())
    assert after.keys() == before.keys()
    for name, buffer in before.items():
        torch.testing.assert_close(after[name], buffer, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3", "bloom", "mamba", "llama4"])
def test_other_rotary_modules_are_not_found(architecture: str) -> None:
    assert not frequencies.find(model_of(CONFIGS[architecture]))


def test_a_boundary_beyond_the_context_is_ignored() -> None:
    parameters = LONGROPE | {"original_max_position_embeddings": SHAPE["max_position_embeddings"]}
    config = LlamaConfig(**SHAPE, num_key_value_heads=2, rope_parameters=parameters)
    assert not frequencies.find(model_of(config))


def test_a_module_that_cannot_be_called_is_judged_by_its_rope_type() -> None:
    model = model_of(CONFIGS["llama_longrope"])

    def forward(position_ids: torch.Tensor, grid: torch.Tensor) -> None:
        raise AssertionError("never called: it takes something unknown")

    rotary(model).forward = forward
    assert frequencies.find(model)


def test_each_sequence_has_its_own_state_of_the_modules() -> None:
    model = model_of(CONFIGS["llama_dynamic"])
    found = frequencies.find(model)
    fresh = turned(model, 45)
    first, second = found.make_state(), found.make_state()
    model = model_of(CONFIGS["llama_dynamic"])
    found = frequencies.find(model)
    with found.use_state(first):
        grown = turned(model, 100)
    with found.use_state(second):
        torch.testing.assert_close(turned(model, 45), fresh, rtol=0, atol=0)
    kept = first.copy()
    for sequence in (first, kept):
        with found.use_state(sequence):
            # As in transformers, frequencies that have grown stay for shorter passes.
            assert not torch.equal(turned(model, 45), fresh)
            torch.testing.assert_close(turned(model, 100), grown, rtol=0, atol=0)
    torch.testing.assert_close(turned(model, 45), fresh, rtol=0, atol=0)


def test_dynamic_scaling_multiplies_the_context_length() -> None:
    assert read_max_context_length(CONFIGS["llama_dynamic"]) == 200
    assert read_max_context_length(CONFIGS["gemma3_dynamic"]) == 200
    assert read_max_context_length(CONFIGS["llama_longrope"]) == 256
