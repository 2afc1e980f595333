"""Log probabilities of a real model by a forward pass of transformers, to compare records with."""

from functools import cache
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from upstream_asking import Settings


@cache
def _load(directory: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()  # type: ignore[no-any-return]


@torch.inference_mode()
def compute_logprobs(
    directory: Path, prompt: list[int], generated: list[int], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return raw and processed log probabilities at each generated token, both (token, V)."""
    ids = torch.tensor([prompt + generated])
    logits = _load(directory)(ids).logits[0, len(prompt) - 1 : -1]  # (token, V)
    if not settings.temperature:
        return logits.log_softmax(-1), logits.log_softmax(-1)
    processors = LogitsProcessorList()
    processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        processors.append(MinPLogitsWarper(settings.min_p))
    return logits.log_softmax(-1), processors(ids, logits.clone()).log_softmax(-1)
