"""Head weights from the model itself: a head counts by how long the stream is that it adds to.

What a head adds to the residual stream matters as far as it compares with what is there already,
which the norm that comes next divides by: contributions are held against the residual connection
in Kobayashi et al., "Incorporating Residual and Normalization Layers into Analysis of Masked
Language Models", EMNLP 2021, section 3. Where the stream is short, as in a first layer that takes
in embeddings alone, little is much: counted alike, later layers' heads look stronger than they are.
Hence

    theta[l, h] = mean over tokens of 1 / |x[l]|

where x[l] is the stream that layer l takes in. All heads of a layer have the same.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from whence_server.engine.internals.attention import LayerAttention, probe_attention
from whence_server.engine.internals.layers import find_layers
from whence_server.engine.internals.sources import UnavailableError


@torch.inference_mode()
def compute_stream_weights(model: Any, pieces: Iterable[Sequence[int]]) -> list[list[float]]:
    """One weight for each head, by the residual stream that its layer adds to.

    Args:
        model: in eval mode, with our attention in place.
        pieces: token ids of text that is like what the model is used on; at least one piece.

    Returns:
        For each layer that attends, in order, a number for each head; the largest is 1.

    Raises:
        UnavailableError: its layers cannot be found, or a stream is zero, or no number.
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
        raise UnavailableError("the residual stream of a layer that attends has no length")
    largest = max(means)
    return [
        [mean / largest] * heads for mean, heads in zip(means, collector.num_heads, strict=True)
    ]


class _StreamCollector:
    """What the layers of one pass take in.

    Attributes:
        streams: [tokens, width], of each layer that attends, when it does.
        num_heads: of each of the same.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget the pass before."""
        self._stream: torch.Tensor | None = None
        self.streams: list[torch.Tensor] = []
        self.num_heads: list[int] = []

    def take_input(self, _layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Is told of a layer's input."""
        self._stream = (args[0] if args else kwargs["hidden_states"])[0]

    def take_attention(self, read: Callable[[], LayerAttention]) -> None:
        """Is told that the layer attends."""
        if self._stream is None:
            raise UnavailableError("it attends outside its layers")
        self.streams.append(self._stream)
        self.num_heads.append(read().weights.shape[1])


def _sum_inverse_norms(stream: torch.Tensor) -> float:
    return float((1 / torch.linalg.vector_norm(stream.double(), dim=-1)).sum())
