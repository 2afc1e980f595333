"""Keeps the head of a model from copying its weights for the last position of a prompt."""

from typing import Any

import torch
from torch.jit._trace import is_tracing


def lay_out_head_input(model: Any) -> None:
    """Give the model's head its input in a layout with which one matrix product suffices.

    With `logits_to_keep` the hidden state of the last position, [1, 1, H], is a view of those of
    all positions. The stride of its first dimension keeps torch from folding it into a matrix
    (`should_fold` in ATen/native/LinearAlgebra.cpp), so it multiplies in batches, and copies the
    head's weights for that in bfloat16: half of the time of a short prompt.

    Args:
        model: a causal language model; one without an output embedding is left alone.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_fold)


def _fold(_head: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the input with the strides of its shape; None if it has them."""
    # A traced step reads one token of each row, whose strides are those of its shape.
    if is_tracing() or not given:
        return None
    hidden, *others = given
    if not isinstance(hidden, torch.Tensor) or hidden.dim() != 3:
        return None
    if hidden.stride(0) == hidden.stride(1) * hidden.shape[1]:
        return None
    return hidden.reshape(-1, hidden.shape[-1]).view(hidden.shape), *others
