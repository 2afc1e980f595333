"""Direct sources: the context positions that attention read from, weighted by value norms.

The share of position j is proportional to

    sum over layers l, heads h of  theta[l, h] * a[l, h, newest, j] * |v[l, h, j] W_O[l, h]|

where a are the attention weights, v is the head's value at j, and W_O[l, h] are the rows of the
layer's output projection that the head feeds. Attention weights alone would count positions with
tiny values. (Kobayashi et al., "Attention is Not Only a Weight: Analyzing Transformers with Vector
Norms", 2020, section 3. theta is one weight for each head, as in Cohen-Wang et al., "Learning to
Attribute with Attention", 2025; the default is 1.) A direct source is not always the origin of the
information: a position's value also holds what earlier layers moved there.

A position's norms never change, so that they are computed once for each token in the cache. With
G[l, h] = W_O[l, h] W_O[l, h]^T, the norm |v W_O| = sqrt(v G v) costs a head's size and not the
model's width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.internals.attention import LayerAttention
from whence_server.engines.transformers.internals.sinks import find_sinks

METHOD = "value-norm-attention/2"
"""Name of the method; version 1 listed attention sinks among the sources."""
MAX_SOURCES = 16
"""Number of positions listed for a step."""
COLUMNS_TOGETHER = 256
"""Columns, summed over layers, whose norms are computed at once; bounds the memory."""


class UnavailableError(Exception):
    """A model cannot give a part of its internals; the message is the reason."""


class Sources(NamedTuple):
    """Sources of one token.

    Attributes:
        positions: context positions without the newest and without sinks, largest share first.
        shares: share of each position.
        self_share: share of the newest position; None if all contributions are zero.
        sink_share: share of attention sinks, which are not among the positions; None if no
            position is one.
    """

    positions: list[int]
    shares: list[float]
    self_share: float | None
    sink_share: float | None = None


class Reading(NamedTuple):
    """Result of one step's attention, for each row and position: [R, W], the newest last.

    Attributes:
        contributions: contribution to the newest position, not normalised.
        sinks: True for attention sinks.
    """

    contributions: torch.Tensor
    sinks: torch.Tensor


class OutputNorms:
    """Computation of |v W_O| for all heads of all layers at once.

    K is the total number of heads of all layers, in the order of the layers.

    Args:
        projections: for each layer that attends, its heads' output projections
            [heads, head size, model width].
        num_value_heads: value heads of each layer; successive heads share one.
        head_weights: theta, [layers, heads], of the layers that attend; None for 1. Only their
            ratios matter.

    Raises:
        UnavailableError: the layers' heads differ in number or size.
        ConfigurationError: the shape of `head_weights` is not [layers, heads].
    """

    def __init__(
        self,
        projections: Sequence[torch.Tensor],
        num_value_heads: int,
        head_weights: Sequence[Sequence[float]] | None,
    ) -> None:
        if len({(len(heads), heads.shape[1]) for heads in projections}) > 1:
            raise UnavailableError("its layers' attention heads differ in number or size")
        grams = [torch.bmm(heads, heads.mT) for heads in (p.float() for p in projections)]
        self._num_value_heads = num_value_heads
        num_heads, size = projections[0].shape[:2]
        # The heads that share a value are multiplied with it at once, without repeating it.
        shared = torch.cat(grams).view(-1, num_heads // num_value_heads, size, size)
        self._grams = shared.transpose(1, 2).flatten(2)  # (layers * value heads, d, sharing * d)
        self._thetas: torch.Tensor | None = None
        if head_weights is not None:
            thetas = torch.tensor(head_weights, dtype=torch.float64)
            expected = (len(projections), num_heads)
            if tuple(thetas.shape) != expected:
                raise ConfigurationError(
                    f"--head-weights: the shape of head_weights is {tuple(thetas.shape)}; it must "
                    f"be {expected}: the model has {expected[0]} attention layers of "
                    f"{expected[1]} heads"
                )
            # Scaled to a maximum of 1, so that sums of products cannot overflow.
            thetas = (thetas / thetas.max()).to(self._grams.device, torch.float32)
            self._thetas = thetas.flatten().unsqueeze(1)  # (K, 1)

    def compute(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the norms theta * |v W_O|: float32 [K, n].

        Args:
            values: each layer's values, [value heads, n, head size].
        """
        # The few columns of a step at once, the many of a prompt layer by layer.
        together = max(1, COLUMNS_TOGETHER // values[0].shape[1])
        norms = torch.cat(
            [
                self._compute(first, values[first : first + together])
                for first in range(0, len(values), together)
            ]
        )  # (K, n)
        return norms if self._thetas is None else norms.mul_(self._thetas)

    def _compute(self, first: int, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return |v W_O| of the heads of the layers from `first` on: [heads, n]."""
        heads = slice(first * self._num_value_heads, (first + len(values)) * self._num_value_heads)
        stacked = torch.cat(list(values)).float()  # (their value heads, n, d)
        products = torch.bmm(stacked, self._grams[heads]).unflatten(2, (-1, stacked.shape[2]))
        squares = products.mul_(stacked.unsqueeze(2)).sum(-1)  # (their value heads, n, sharing)
        return squares.clamp_(min=0).sqrt_().mT.flatten(0, 1)


def find_projections(
    passes: Sequence[LayerAttention], inputs: Sequence["ModuleInput"]
) -> list[torch.Tensor]:
    """Find each layer's output projection: the linear module whose input is the heads' outputs.

    Args:
        passes: each layer's attention, in one forward pass.
        inputs: inputs of every linear module within the layers' attention, in the same pass.

    Returns:
        For each layer [heads, head size, model width].

    Raises:
        UnavailableError: the heads' outputs are not the input of exactly one linear module.
    """
    found = []
    for attended in passes:
        given = attended.output.flatten(2)  # (1, tokens, heads * size)
        fed = [
            entry
            for entry in inputs
            if entry.attention is attended.module and _are_equal(entry.tensor, given)
        ]
        fed = [entry for entry in fed if not _is_inside(entry.module, fed)]
        if len(fed) != 1:
            raise UnavailableError(
                "its heads' outputs are not the unchanged input of one linear projection"
            )
        _, num_heads, size = attended.output.shape[1:]
        weight = _get_weight(fed[0].module, given)
        rows = weight.unflatten(0, (num_heads, size))
        _check_projection(fed[0].module, given, weight)
        found.append(rows)
    return found


class ModuleInput(NamedTuple):
    """The input of a module in a forward pass.

    Attributes:
        attention: the attention module that the module is part of.
        module: the module.
        tensor: the module's first argument.
    """

    attention: torch.nn.Module
    module: torch.nn.Module
    tensor: torch.Tensor


def _is_inside(module: torch.nn.Module, entries: Sequence[ModuleInput]) -> bool:
    """Return whether a module is part of another one, as the layers of an adapter are."""
    return any(
        module is not entry.module and any(module is part for part in entry.module.modules())
        for entry in entries
    )


def _get_weight(module: Any, given: torch.Tensor) -> torch.Tensor:
    """Return the weight as [inputs, outputs]: as in transformers' Conv1D, transposed in Linear.

    Args:
        module: a linear module, or one with the layers of an adapter.
        given: an input of the module, for its size and type.
    """
    if hasattr(module, "base_layer"):  # PEFT's, whose `weight` is the base's alone
        ones = torch.eye(given.shape[-1], dtype=given.dtype, device=given.device)
        computed: torch.Tensor = module(ones) - module(torch.zeros_like(ones[:1]))
        return computed
    weight: torch.Tensor = module.weight
    return weight.mT if isinstance(module, torch.nn.Linear) else weight


def _check_projection(module: Any, given: torch.Tensor, weight: torch.Tensor) -> None:
    zero = module(torch.zeros_like(given[:, :1]))
    expected = module(given) - zero
    tolerance = 1e-3 if torch.finfo(given.dtype).bits >= 32 else 5e-2
    ours = torch.matmul(given, weight)
    if not torch.allclose(ours, expected, rtol=0, atol=tolerance * float(expected.abs().max())):
        raise UnavailableError("its output projection does more than multiply by its weight")


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def read_context(
    weights: Sequence[torch.Tensor], norms: torch.Tensor, rows: Sequence[int] | None
) -> Reading:
    """Return each position's contribution to the newest one, and which positions are sinks.

    Args:
        weights: each layer's attention weights, [B, heads, columns], the newest position last. The
            last W columns are used; a layer with fewer has weight 0 for the positions before them.
        norms: [R, K, W], see `OutputNorms.compute`.
        rows: the R rows of the batch to use; None for all, in their order.
    """
    if rows is not None:
        index = torch.tensor(rows, device=norms.device)
        weights = [layer.index_select(0, index) for layer in weights]
    width = norms.shape[-1]
    stacked = torch.cat([_take_newest(layer, width) for layer in weights], 1).float()
    sinks = find_sinks(stacked.mean(1), norms.sum(1))
    return Reading(stacked.mul_(norms).sum(1), sinks)


def _take_newest(weights: torch.Tensor, width: int) -> torch.Tensor:
    """Return the last `width` columns, padded with 0 on the left."""
    missing = width - weights.shape[-1]
    if missing > 0:
        return torch.nn.functional.pad(weights, (missing, 0))
    return weights[..., -missing:]


def list_sources(reading: Reading, lengths: Sequence[int]) -> list[Sources]:
    """Return each row's sources.

    Args:
        reading: right-aligned, with the newest position in the last column.
        lengths: number of positions of each row.
    """
    width = reading.sinks.shape[1]
    shares = reading.contributions / reading.contributions.sum(1, keepdim=True)
    top = shares.masked_fill(reading.sinks, 0)[:, :-1].topk(min(MAX_SOURCES, width - 1))
    rows = zip(
        top.values.tolist(),
        top.indices.tolist(),
        shares[:, -1].tolist(),
        (shares * reading.sinks).sum(1).tolist(),
        reading.sinks.any(1).tolist(),
        lengths,
        strict=True,
    )
    return [
        _make_sources(
            values,
            [column - (width - length) for column in columns],
            newest,
            sink if has_sink else None,
        )
        for values, columns, newest, sink, has_sink, length in rows
    ]


def _make_sources(
    shares: list[float], positions: list[int], newest: float, sink: float | None
) -> Sources:
    if math.isnan(newest):
        return Sources([], [], None)
    num = sum(share > 0 for share in shares)
    return Sources(positions[:num], shares[:num], newest, sink)
