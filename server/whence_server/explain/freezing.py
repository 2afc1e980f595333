"""Forward passes whose norms are frozen: their scales are constants for the gradient.

A norm with a frozen scale is linear in the residual stream, up to its bias. A soft cap of the
logits is left out. Then the logit is linear in what was added to the stream, and the terms
(gradient times what was added) add up to it.
"""

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_SCALES = frozenset(
    {
        torch.rsqrt,
        torch.Tensor.rsqrt,
        torch.sqrt,
        torch.Tensor.sqrt,
        torch.norm,
        torch.Tensor.norm,
        torch.linalg.vector_norm,
        torch.linalg.norm,
    }
)
_LAYER_NORMS = frozenset({functional.layer_norm, torch.layer_norm})
_RMS_NORMS = frozenset({functional.rms_norm, torch.rms_norm})
_CAPS = frozenset({torch.tanh, torch.Tensor.tanh, functional.tanh})


class FrozenNorms(TorchFunctionMode):
    """Mode in which norms are linear, and in which no soft cap bends the logits.

    Only operations that are recorded for a gradient are changed.

    Args:
        vocabulary_size: width of the logits.

    Attributes:
        biases: biases of layer norms as they were added, with gradients of their own.
    """

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self._vocabulary_size = vocabulary_size
        self.biases: list[torch.Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch, with a frozen scale if it is one of a norm."""
        given = kwargs or {}
        if not torch.is_grad_enabled():
            return func(*args, **given)
        if func in _LAYER_NORMS:
            return self._normalize(*args, **given)
        if func in _RMS_NORMS:
            return _divide_by_rms(*args, **given)
        if func in _CAPS and args[0].shape[-1] == self._vocabulary_size:
            return args[0]
        output = func(*args, **given)
        return output.detach() if func in _SCALES else output

    def _normalize(
        self,
        hidden: torch.Tensor,
        normalized_shape: Any,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
        *_others: Any,
    ) -> torch.Tensor:
        dims = tuple(range(-len(normalized_shape), 0))
        centered = hidden.float() - hidden.float().mean(dims, keepdim=True)
        scale = torch.rsqrt(centered.square().mean(dims, keepdim=True) + eps).detach()
        output = centered * scale
        if weight is not None:
            output = output * weight.float()
        if bias is not None:
            leaf = bias.detach().float().requires_grad_()
            self.biases.append(leaf)
            output = output + leaf
        return output.to(hidden.dtype)


def _divide_by_rms(
    hidden: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(hidden.dtype).eps if eps is None else eps
    scale = torch.rsqrt(hidden.float().square().mean(dims, keepdim=True) + eps).detach()
    output = hidden.float() * scale
    return (output if weight is None else output * weight.float()).to(hidden.dtype)
