"""Bounds of the memory that passes need."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from whence_server.domain.errors import ExplanationTooLargeError
from whence_server.engines.transformers.internals.layers import find_layers

MAX_KEPT_BYTES = 512 << 20
"""Estimated size of a pass's activations above which its layers are computed twice."""
MAX_ROWS = 8
MAX_STREAM_BYTES = 2 << 30
"""Size of the layers' outputs that an explanation may keep at once."""


def check_streams(model: Any, num_tokens: int) -> None:
    """Check that the outputs of all layers can be kept; called before any pass.

    Args:
        model: a causal language model.
        num_tokens: number of tokens whose outputs are kept, in all passes together.

    Raises:
        ExplanationTooLargeError: they take more than `MAX_STREAM_BYTES`.
    """
    config = model.config.get_text_config(decoder=True)
    token_bytes = int(config.num_hidden_layers) * int(config.hidden_size) * model.dtype.itemsize
    most = MAX_STREAM_BYTES // token_bytes
    if num_tokens > most:
        raise ExplanationTooLargeError(
            f"the outputs of all layers would have to be kept for {num_tokens:,} tokens, and "
            f"{most:,} is the most for this model: ask for leave-one-out or ablation, or for a "
            "shorter context",
            num_tokens=str(num_tokens),
            max_tokens=str(most),
        )


def count_rows(model: Any, num_tokens: int) -> int:
    """Return the number of sequences of that length whose gradients are computed together."""
    return max(1, min(MAX_ROWS, MAX_KEPT_BYTES // (num_tokens * _estimate_token_bytes(model))))


@contextmanager
def recompute_if_long(model: Any, num_tokens: int) -> Iterator[None]:
    """Have a backward pass compute each layer again, if keeping all activations takes too much.

    Only the inputs of the layers are then kept, and the activations of one layer at a time.

    Args:
        model: a causal language model.
        num_tokens: number of tokens of the pass, in all its rows.
    """
    if num_tokens * _estimate_token_bytes(model) <= MAX_KEPT_BYTES:
        yield
        return
    layers = list(find_layers(model))
    for layer in layers:
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _estimate_token_bytes(model: Any) -> int:
    """Return about how many bytes a layer keeps of a token for its gradient, over all layers."""
    config = model.config.get_text_config(decoder=True)
    width = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or 4 * width
    per_layer = 12 * width + 4 * int(inner if isinstance(inner, int) else max(inner))
    return int(config.num_hidden_layers * per_layer * model.dtype.itemsize)
