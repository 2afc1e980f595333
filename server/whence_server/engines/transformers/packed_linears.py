"""Linear layers with weights in oneDNN's packed layout, for captured steps on the CPU.

torch multiplies in bfloat16 with oneDNN, which rearranges a weight in every call. A step reads few
rows, so that rearranging takes about as long as multiplying. Here each weight is rearranged once.
The kernel is the same, and so are the bits; this is checked for each shape of weight.

In float32 torch multiplies with another library, which sums in another order. There packed weights
are used only if the operator has chosen `StepKernels.PACKED`.

The packed weights are copies: the modules keep theirs, for prompts and probes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from whence_server.domain.model import StepKernels

MAX_COPIED_BYTES = 1 << 30
"""Size of a model up to which its weights are copied."""
NUMBERS_OF_ROWS = (1, 2, 3, 4, 7, 8, 16, 31, 64)
"""Numbers of rows for which results are compared."""

ROUNDING = 1e-4
"""Bound of the difference in float32: of the order of rounding, relative to the largest logit."""
_KERNELS: Any = torch.ops.mkldnn
"""oneDNN's operations in torch, as `torch.compile` calls them."""
_TYPES = (torch.bfloat16, torch.float32)
_COMPILED: Any = torch.jit.CompilationUnit("""
def multiply(rows, packed, bias: Optional[Tensor]):
    return torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
""")
"""The product in TorchScript: the operation itself cannot be captured, because of its list."""
_packed = WeakTensorKeyDictionary()
"""Packed weights by weight: several graphs, as with and without a probe, share one copy."""


class PackedWeights(NamedTuple):
    """Linear layers, and the packed copy of each one's weight.

    A captured step takes the copies as inputs, because TorchScript has no constants in this layout.
    """

    layers: list[torch.nn.Linear]
    packed: list[torch.Tensor]


def can_pack(model: Any, kernels: StepKernels) -> bool:
    """Return whether packed weights may make the model's steps faster."""
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    if (
        model.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()
        or num_bytes > MAX_COPIED_BYTES
    ):
        return False
    if model.dtype == torch.bfloat16:
        return _KERNELS._is_mkldnn_bf16_supported() and _give_equal_results(model)  # noqa: SLF001
    return bool(model.dtype == torch.float32 and kernels is StepKernels.PACKED)


def get_bound(model: Any, *, packed: bool) -> float:
    """Return the bound of a step's difference from the modules, relative to the largest logit."""
    return ROUNDING if packed and model.dtype == torch.float32 else 0.0


def name_kernels(model: Any, *, packed: bool) -> str:
    """Return the recorded name of kernels by which steps differ from the modules; "" for none."""
    return StepKernels.PACKED.value if get_bound(model, packed=packed) else ""


def pack(model: torch.nn.Module) -> PackedWeights:
    """Return a model's linear layers with their packed weights."""
    layers = _list_layers(model)
    return PackedWeights(layers, [_pack(layer.weight) for layer in layers])


def _list_layers(model: torch.nn.Module) -> list[torch.nn.Linear]:
    """Return the layers that are torch's own, whose forward pass is a product and nothing else."""
    return [
        part
        for part in model.modules()
        if type(part) is torch.nn.Linear
        and part.weight.dtype in _TYPES
        and "forward" not in vars(part)
    ]


def _pack(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor | None = _packed.get(weight)
    if packed is None:
        with torch.inference_mode():
            packed = _KERNELS._reorder_linear_weight(weight.detach(), 1)  # noqa: SLF001
        _packed[weight] = packed
    return packed


def _give_equal_results(model: torch.nn.Module) -> bool:
    """Return whether packed weights give the results of plain ones to the bit, for all shapes."""
    shapes = {tuple(layer.weight.shape): layer.weight for layer in _list_layers(model)}
    return all(_gives_equal_results(weight) for weight in shapes.values())


@torch.inference_mode()
def _gives_equal_results(weight: torch.Tensor) -> bool:
    source = torch.Generator().manual_seed(0)
    rows = torch.randn((max(NUMBERS_OF_ROWS), 1, weight.shape[1]), generator=source)
    rows = rows.to(weight.dtype)
    return all(
        torch.equal(
            _multiply(rows[:count], _pack(weight), None),
            torch.nn.functional.linear(rows[:count], weight),
        )
        for count in NUMBERS_OF_ROWS
    )


@contextmanager
def use_packed_weights(
    layers: Sequence[torch.nn.Linear], packed: Sequence[torch.Tensor]
) -> Iterator[None]:
    """Make linear layers multiply with packed weights within the context.

    Args:
        layers: the layers.
        packed: the packed weight of each.
    """
    try:
        for layer, weight in zip(layers, packed, strict=True):
            vars(layer)["forward"] = partial(_apply, weight, layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _apply(packed: torch.Tensor, bias: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    return _multiply(rows, packed, bias)


def _multiply(rows: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    product: torch.Tensor = _COMPILED.multiply(rows, packed, bias)
    return product
