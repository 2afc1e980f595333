"""LoRA layers whose adapter each row chooses, so that rows of several adapters share a pass.

A pass computes x W + x A[i] B[i] for each row, where i is the row's adapter. Without an adapter, or
if it leaves the layer alone, A and B are zero, and so is what they add. (Chen et al., "Punica:
Multi-Tenant LoRA Serving", 2023, section 4, without its kernels.)
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from whence_server.engines.transformers import shared_copy

DEFAULT = "default"
"""PEFT's name of the only adapter in a model."""


class LoraWeights(NamedTuple):
    """An adapter's weights for one linear layer.

    Attributes:
        a: [inputs, rank].
        b: [rank, outputs], with the adapter's scaling.
    """

    a: torch.Tensor
    b: torch.Tensor


class RowIndex:
    """Adapters of the rows of the next pass, which all layers read.

    The tensor is written in place, so that a captured graph sees it.

    Args:
        max_rows: largest number of rows of a pass.
        device: device of the model.

    Attributes:
        rows: int64 [max_rows]: 0 for no adapter, else the adapter's number from 1.
    """

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self.rows = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._newest: list[int] = []

    def set(self, numbers: Sequence[int]) -> None:
        """Set the adapters of the next pass's rows."""
        if self._newest != list(numbers):
            self._newest = list(numbers)
            self.rows[: len(numbers)] = torch.tensor(numbers, device=self.rows.device)


class RowLora(torch.nn.Module):
    """A linear layer with the LoRA weights of several adapters.

    Args:
        base: the linear layer of the model, which is shared.
        weights: those of each adapter, in the order of their numbers; None where an adapter leaves
            the layer alone.
        index: the rows' adapters.
    """

    def __init__(
        self, base: torch.nn.Module, weights: Sequence[LoraWeights | None], index: RowIndex
    ) -> None:
        super().__init__()
        self.base = base
        self._index = index
        given = [of_adapter for of_adapter in weights if of_adapter is not None]
        rank = max(of_adapter.a.shape[1] for of_adapter in given)
        like = given[0]
        size = len(weights) + 1
        self.a = like.a.new_zeros(size, like.a.shape[0], rank)
        self.b = like.b.new_zeros(size, rank, like.b.shape[1])
        for number, of_adapter in enumerate(weights, 1):
            if of_adapter is not None:
                self.a[number, :, : of_adapter.a.shape[1]] = of_adapter.a
                self.b[number, : of_adapter.b.shape[0]] = of_adapter.b

    @property
    def weight(self) -> torch.Tensor:
        """Weight of the model's own layer."""
        return self.base.weight  # type: ignore[return-value]

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Map [rows, tokens, inputs] to [rows, tokens, outputs]."""
        result: torch.Tensor = self.base(given)
        rows = self._index.rows.narrow(0, 0, given.size(0))
        # In the adapter's type, as in PEFT, which is float32 beside a model in half precision.
        inner = torch.bmm(given.to(self.a.dtype), self.a.index_select(0, rows))
        return (result + torch.bmm(inner, self.b.index_select(0, rows))).to(result.dtype)


def read_lora(adapted: Any, model: Any) -> dict[str, LoraWeights] | None:
    """Return the LoRA weights of an adapted model by the names of its layers.

    Args:
        adapted: a copy of the model with the adapter's layers.
        model: the model.

    Returns:
        None if the adapter does more than add a product of two matrices to linear layers.
    """
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: dict[str, LoraWeights] = {}
    for name, module in adapted.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return None
        if not isinstance(module, BaseTunerLayer):
            continue
        if type(module) is not Linear or module.lora_variant or module.lora_bias[DEFAULT]:
            return None
        if not _is_shared(module, model.get_submodule(name)):
            return None
        found[name] = _read_weights(module)
    return found or None


def _is_shared(layer: Any, base: Any) -> bool:
    """Return whether a layer's base has the model's own weight and bias."""
    own = layer.base_layer
    return own.weight is base.weight and own.bias is base.bias


def _read_weights(layer: Any) -> LoraWeights:
    a: torch.Tensor = layer.lora_A[DEFAULT].weight.detach()
    b: torch.Tensor = layer.lora_B[DEFAULT].weight.detach()
    return LoraWeights(a.mT, b.mT * layer.scaling[DEFAULT])


def copy_with_rows(
    model: Any, adapters: Sequence[Mapping[str, LoraWeights]], index: RowIndex
) -> Any:
    """Return a copy of a model's modules whose rows choose among adapters.

    Args:
        model: the served model, whose tensors are shared.
        adapters: weights of each adapter by the names of layers, in the order of their numbers.
        index: the rows' adapters.
    """
    copied = shared_copy.copy_modules(model)
    for name in sorted({name for adapter in adapters for name in adapter}):
        weights = [adapter.get(name) for adapter in adapters]
        copied.set_submodule(name, RowLora(copied.get_submodule(name), weights, index))
    return copied.eval().requires_grad_(False)
