"""Head weights from a model's residual stream: a head counts relative to the stream's norm.

The effect of a head's output depends on its size relative to the residual stream to which it is
added, because the next norm divides by the stream's norm. (Kobayashi et al., "Incorporating
Residual and Normalization Layers into Analysis of Masked Language Models", EMNLP 2021, section 3,
compare contributions with the residual connection.) The stream's norm grows with depth, so that
with equal weights the heads of later layers would seem stronger than they are. Hence

    theta[l, h] = mean over tokens of 1 / |x[l]|

where x[l] is the stream at the input of layer l. All heads of a layer have the same weight.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from whence_server.engines.transformers.internals.attention import LayerAttention, probe_attention
from whence_server.engines.transformers.internals.layers import find_layers
from whence_server.engines.transformers.internals.sources import UnavailableError

METHOD = "stream-norms/1"


@torch.inference_mode()
def compute_stream_weights(model: Any, pieces: Iterable[Sequence[int]]) -> list[list[float]]:
    """Return one weight for each head, from the residual stream at its layer's input.

    Args:
        model: in eval mode, with our attention in place.
        pieces: token ids of texts typical for the model's use; at least one piece.

    Returns:
        For each layer that attends, in order, a number for each head; the largest is 1.

    Raises:
        UnavailableError: the layers cannot be found, or a stream is zero or not finite.
    """
    collector = _StreamCollector()
    handles = [
        layer.register_forward_pre_hook(collector.take_input, with_kwargs=True)
        for layer in find_layers(model)
    ]
    num_tokens = 0
    sums: list[float] = []
    try:
        for piece in pieces:
            num_tokens += len(piece)
            collector.begin()
            with probe_attention(collector.take_attention):
                model(input_ids=torch.tensor([piece], device=model.device), use_cache=False)
            inverses = [_sum_inverse_norms(stream) for stream in collector.streams]
            sums = [a + b for a, b in zip(sums, inverses, strict=True)] if sums else inverses
    finally:
        for handle in handles:
            handle.remove()
    means = [total / num_tokens for total in sums]
    if not means or not all(0 < mean < float("inf") for mean in means):
        raise UnavailableError("the residual stream of an attention layer is zero or not finite")
    largest = max(means)
    return [
        [mean / largest] * heads for mean, heads in zip(means, collector.num_heads, strict=True)
    ]


class _StreamCollector:
    """Collector of the inputs of the attention layers in one forward pass.

    Attributes:
        streams: residual stream at the input of each layer that attends, [tokens, width].
        num_heads: number of heads of each layer that attends.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Clear the collected data for a new pass."""
        self._stream: torch.Tensor | None = None
        self.streams: list[torch.Tensor] = []
        self.num_heads: list[int] = []

    def take_input(self, _layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep a layer's input; a forward pre-hook."""
        self._stream = (args[0] if args else kwargs["hidden_states"])[0]

    def take_attention(self, read: Callable[[], LayerAttention]) -> None:
        """Add the current layer, which attends."""
        if self._stream is None:
            raise UnavailableError("it attends outside its layers")
        self.streams.append(self._stream)
        self.num_heads.append(read().weights.shape[1])


def _sum_inverse_norms(stream: torch.Tensor) -> float:
    return float((1 / torch.linalg.vector_norm(stream.double(), dim=-1)).sum())
