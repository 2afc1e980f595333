"""Models that get our attention function, and models that keep their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from whence_server.engines.transformers.internals import attention


@pytest.fixture
def load(tiny_model: Callable[..., Path]) -> Callable[[str], Any]:
    def get(architecture: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_model(architecture)).eval()

    return get


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(40, 70).unsqueeze(0)).logits


@pytest.mark.parametrize(
    ("architecture", "original"), [("gpt2", "sdpa"), ("mistral", "sdpa"), ("gemma2", "eager")]
)
def test_several_tokens_use_the_original_attention_with_its_masks(
    load: Callable[[str], Any], architecture: str, original: str
) -> None:
    model = load(architecture)
    assert attention.get_implementation(model) == original
    before = logits(model)
    assert attention.adopt(model) is None
    assert attention.get_implementation(model) == f"whence_{original}"
    assert attention.get_original_implementation(model) == original
    assert torch.equal(logits(model), before)
    attention.restore(model)
    assert attention.get_implementation(model) == original


@pytest.mark.parametrize("architecture", ["bloom", "falcon", "mamba", "rwkv"])
def test_a_model_that_does_not_look_up_its_attention_is_unchanged(
    load: Callable[[str], Any], architecture: str
) -> None:
    model = load(architecture)
    original = attention.get_implementation(model)
    assert attention.adopt(model) == attention.NONE_ATTENDS
    assert attention.get_implementation(model) == original


def test_attention_with_unsupported_arguments_is_unchanged(
    load: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load("gpt2")
    monkeypatch.setattr(attention, "NOT_HANDLED", ("scaling",))
    reason = attention.adopt(model)
    assert reason is not None
    assert "it takes scaling" in reason
    assert attention.get_implementation(model) == "sdpa"


def test_layers_that_compare_the_attentions_name_keep_the_original(
    load: Callable[[str], Any],
) -> None:
    model = load("minimax_m3")
    reason = attention.adopt(model)
    assert reason is not None
    assert "compares the name of its attention with 'sdpa'" in reason
    assert attention.get_implementation(model) == "sdpa"
