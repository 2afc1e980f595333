"""Models and targets for tests of explanations."""

from pathlib import Path
from typing import Any

import torch
from engine_harness import prompt_of
from transformers import AutoModelForCausalLM

from whence_server.engines.transformers.internals import attention
from whence_server.explain.target import Target


def explained_model(directory: Path) -> Any:
    """Return a model in float32, with the engine's attention function if it can have it."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval().requires_grad_(False)
    attention.adopt(model)
    return model


def target_of(
    num_context: int = 12, num_span: int = 1, against: tuple[int, ...] = (), seed: int = 3
) -> Target:
    """Return a target of random tokens, whose prompt ends where the span begins."""
    ids = tuple(prompt_of(num_context + num_span, seed=seed))
    return Target(ids, num_context, num_context, against)


def ignore_progress(_done: int, _total: int) -> None:
    """Take the progress of a method."""


@torch.no_grad()
def logits_after(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Return the logits of the next token by a plain call, before a soft cap: float64 [V]."""
    logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return torch.atanh(logits / cap) * cap if cap else logits
