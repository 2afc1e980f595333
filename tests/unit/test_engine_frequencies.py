"""Rotary modules that depend on length: which ones are found, and what each sequence keeps."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import CONFIGS, LENGTH_DEPENDENT, LONGROPE, SHAPE
from transformers import AutoModelForCausalLM, LlamaConfig

from whence_server.engine import frequencies
from whence_server.engine.context import read_max_context_length


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
def test_they_are_found_and_left_as_they_were(architecture: str) -> None:
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
def test_others_are_not(architecture: str) -> None:
    assert not frequencies.find(model_of(CONFIGS[architecture]))


def test_a_boundary_that_no_sequence_reaches_changes_nothing() -> None:
    parameters = LONGROPE | {"original_max_position_embeddings": SHAPE["max_position_embeddings"]}
    config = LlamaConfig(**SHAPE, num_key_value_heads=2, rope_parameters=parameters)
    assert not frequencies.find(model_of(config))


def test_one_that_resists_a_try_counts_by_what_its_config_says() -> None:
    model = model_of(CONFIGS["llama_longrope"])

    def forward(position_ids: torch.Tensor, grid: torch.Tensor) -> None:
        raise AssertionError("never called: it takes something unknown")

    rotary(model).forward = forward
    assert frequencies.find(model)


def test_what_one_sequence_makes_of_them_is_its_own() -> None:
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


def test_dynamic_scaling_makes_the_context_as_many_times_as_long() -> None:
    assert read_max_context_length(CONFIGS["llama_dynamic"]) == 200
    assert read_max_context_length(CONFIGS["gemma3_dynamic"]) == 200
    assert read_max_context_length(CONFIGS["llama_longrope"]) == 256
