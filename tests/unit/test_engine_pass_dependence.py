"""Quantized layers whose results depend on the forward pass: found by calling, decoded singly.

The layers here compute as those of bitsandbytes and compressed-tensors do, without their packages.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import prompt_of
from transformers import AutoModelForCausalLM

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers import batching_check
from whence_server.engines.transformers.batching_check import check_batching
from whence_server.engines.transformers.pass_dependence import (
    find_pass_dependence,
    list_reference_passes,
)
from whence_server.engines.transformers.solo import SoloRunner

TinyModel = Callable[..., Path]

NUM_NEW = 12
PROMPTS = [prompt_of(20, 1), prompt_of(7, 2)]


class Quantized(torch.nn.Linear):
    """Linear layer that computes with weights of another form; subclasses change its input too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = self.weight.abs().amax(1, keepdim=True) / 127
        return torch.nn.functional.linear(self.read(x), (self.weight / step).round() * step)

    def read(self, x: torch.Tensor) -> torch.Tensor:
        return x


class WeightOnly(Quantized):
    pass


class RoundsTokens(Quantized):
    """Rounds each token's activations to int8, as W8A8 of compressed-tensors does."""

    def read(self, x: torch.Tensor) -> torch.Tensor:
        step = x.abs().amax(-1, keepdim=True) / 127
        return (x / step).round() * step


class RoundsFloats(Quantized):
    """Rounds each token's activations to FP8, as FP8_DYNAMIC of compressed-tensors does."""

    def read(self, x: torch.Tensor) -> torch.Tensor:
        step = x.abs().amax(-1, keepdim=True) / 448
        return (x / step).to(torch.float8_e4m3fn).to(x.dtype) * step


class ComputesInHalf(Quantized):
    """Rounds activations to bfloat16, as 4-bit layers of bitsandbytes do on some processors."""

    def read(self, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().to(x.dtype)


class Int8WithOutliers(RoundsTokens):
    """Leaves columns with an outlier in any row of the pass as they are, as LLM.int8 does."""

    def read(self, x: torch.Tensor) -> torch.Tensor:
        outliers = (x.abs() >= 6).flatten(0, -2).any(0)
        return torch.where(outliers, x, super().read(torch.where(outliers, 0, x)))


def quantize(directory: Path, kind: type[Quantized], dtype: str = "float32") -> Any:
    """Return a model with its linear layers replaced, but for the last."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    for parent in list(model.model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is torch.nn.Linear:
                layer.__class__ = kind
                assert getattr(parent, name) is layer
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Int8WithOutliers, "computes a token in another way beside tokens with outliers"),
        (RoundsTokens, "rounds activations"),
        (RoundsFloats, "rounds activations"),
    ],
)
def test_layers_that_depend_on_the_pass_are_found(
    tiny_model: TinyModel, kind: type[Quantized], reason: str, dtype: str
) -> None:
    found = find_pass_dependence(quantize(tiny_model("llama"), kind, dtype))
    assert found == f"its layer model.layers.0.self_attn.q_proj ({kind.__name__}) {reason}"


def test_layers_that_compute_in_half_precision_depend_on_the_pass_in_float32(
    tiny_model: TinyModel,
) -> None:
    found = find_pass_dependence(quantize(tiny_model("llama"), ComputesInHalf))
    assert found.endswith("(ComputesInHalf) rounds activations")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(WeightOnly, "float32"), (WeightOnly, "bfloat16"), (ComputesInHalf, "bfloat16")],
)
def test_layers_that_round_no_activations_are_batched(
    tiny_model: TinyModel, kind: type[Quantized], dtype: str
) -> None:
    model = quantize(tiny_model("llama"), kind, dtype)
    assert find_pass_dependence(model) == ""
    assert check_batching(model) is not None


def test_plain_layers_are_not_called(tiny_model: TinyModel, monkeypatch: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()

    def fail(*_: object) -> None:
        raise AssertionError("a plain layer was called")

    monkeypatch.setattr("whence_server.engines.transformers.pass_dependence._test_layer", fail)
    assert find_pass_dependence(model) == ""


def test_a_layer_with_a_forward_of_its_own_is_called(tiny_model: TinyModel) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama")).eval()
    layer = model.model.layers[1].mlp.up_proj
    layer.forward = lambda x: torch.nn.functional.linear(RoundsTokens.read(layer, x), layer.weight)
    assert find_pass_dependence(model) == (
        "its layer model.layers.1.mlp.up_proj (Linear) rounds activations"
    )


@pytest.mark.parametrize("kind", [Int8WithOutliers, RoundsTokens, ComputesInHalf])
def test_tokens_and_logits_equal_generate_also_after_a_restart(
    tiny_model: TinyModel, kind: type[Quantized]
) -> None:
    model = quantize(tiny_model("llama"), kind)
    assert check_batching(model) is None
    references = [generate(model, prompt) for prompt in PROMPTS]
    runner = SoloRunner(model)
    for (ids, _), num_replayed in zip(references, (0, 5), strict=True):
        # The second goes on after five tokens that an engine generated before it died.
        num_prompt = len(ids) - NUM_NEW
        known = ids[: num_prompt + num_replayed]
        prompt = runner.start(known, num_replayed)
        assert runner.count_whole(len(known), num_replayed) == num_prompt
        runner.prefill(prompt, num_prompt, all_logits=False)
        if num_replayed:
            runner.prefill(prompt, num_replayed, all_logits=False)
        runner.join(prompt)
    logits = [
        runner.decode([references[0][0][i - 5], references[1][0][i]])
        for i in range(-NUM_NEW + 5, -1)
    ]
    first, second = (torch.stack(rows) for rows in zip(*logits, strict=True))
    assert torch.equal(first, references[0][1][1:7])
    assert torch.equal(second, references[1][1][6:])


def generate(model: Any, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """Return the tokens of `generate` with the prompt, and the logits [tokens, V] of its passes."""
    input_ids = torch.tensor([prompt])
    output = model.generate(
        input_ids,
        attention_mask=torch.ones_like(input_ids),
        do_sample=False,
        max_new_tokens=NUM_NEW,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[0].tolist(), torch.cat(output.logits)


def test_a_model_that_differs_from_generate_is_refused_with_the_layer(
    tiny_model: TinyModel, monkeypatch: Any
) -> None:
    model = quantize(tiny_model("llama"), RoundsTokens)

    def other(*_: object) -> tuple[list[int], list[torch.Tensor]]:
        ids, logits = list_reference_passes(model, [1, 2, 3])
        return ids, [each + 1 for each in logits]

    monkeypatch.setattr(batching_check, "list_reference_passes", other)
    with pytest.raises(ConfigurationError, match=r"q_proj .RoundsTokens. rounds activations"):
        check_batching(model)
