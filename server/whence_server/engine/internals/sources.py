"""Direct sources: which context positions the newest token read from, weighed by what it got there.

The share of position j is proportional to

    sum over layers l, heads h of  theta[l, h] * a[l, h, newest, j] * |v[l, h, j] W_O[l, h]|

with a the attention weights, v the head's value at j and W_O[l, h] the rows of the layer's output
projection that the head feeds: attention alone would count positions whose values are next to
nothing. (Kobayashi et al., "Attention is Not Only a Weight: Analyzing Transformers with Vector
Norms", 2020, section 3;
theta, one weight a head, as in Cohen-Wang et al., "Learning to Attribute with Attention", 2025; 1
where none are given.) Directly read is not the same as where it came from: a position's value
holds what earlier layers had moved there.

The norms of a position never change, so they are computed once for each token in the cache, and
through G[l, h] = W_O[l, h] W_O[l, h]^T, so that |v W_O| = sqrt(v G v) costs a head's size and not
the model's width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from whence_server.domain.errors import ConfigurationError
from whence_server.engine.internals.attention import LayerAttention

METHOD = "value-norm-attention/1"
MAX_SOURCES = 16
"""Positions that are listed of a step."""
COLUMNS_TOGETHER = 256
"""Of all layers together, whose norms are computed in one piece: what bounds the memory for it."""


class UnavailableError(Exception):
    """A model cannot give a part of its internals; says why."""


class Sources(NamedTuple):
    """Where one token read from.

    Attributes:
        positions: strongest first, without the newest.
        shares: one for each.
        self_share: of the newest position; None where nothing was read at all: every value that
            was attended to, sent through its head's projection, is zero.
    """

    positions: list[int]
    shares: list[float]
    self_share: float | None


class OutputNorms:
    """What |v W_O| comes to, for all heads of all layers at once.

    K is the number of heads of all layers together, layer after layer.

    Args:
        projections: for each layer that attends [heads, head size, model width]: how a head's
            output reaches the residual stream.
        num_value_heads: of each layer; as many heads in a row share each.
        head_weights: theta, [layers, heads], of the layers that attend; None for 1. Only how they
            compare counts.

    Raises:
        UnavailableError: the layers' heads differ in size.
        ConfigurationError: `head_weights` are not one for each head.
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
        # The heads that share a value are multiplied with it at once: nothing is repeated.
        shared = torch.cat(grams).view(-1, num_heads // num_value_heads, size, size)
        self._grams = shared.transpose(1, 2).flatten(2)  # (layers * value heads, d, sharing * d)
        self._thetas: torch.Tensor | None = None
        if head_weights is not None:
            thetas = torch.tensor(head_weights, dtype=torch.float64)
            expected = (len(projections), num_heads)
            if tuple(thetas.shape) != expected:
                raise ConfigurationError(
                    f"--head-weights: they are {tuple(thetas.shape)}; the model has "
                    f"{expected[0]} layers of {expected[1]} heads that attend"
                )
            # The largest is 1: whatever the file's scale, a sum of products does not overflow.
            thetas = (thetas / thetas.max()).to(self._grams.device, torch.float32)
            self._thetas = thetas.flatten().unsqueeze(1)  # (K, 1)

    def compute(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """The norms theta * |v W_O|: float32 [K, n].

        Args:
            values: each layer's, [value heads, n, head size].
        """
        # A step's few columns in one piece, a prompt's many layer by layer.
        together = max(1, COLUMNS_TOGETHER // values[0].shape[1])
        norms = torch.cat(
            [
                self._compute(first, values[first : first + together])
                for first in range(0, len(values), together)
            ]
        )  # (K, n)
        return norms if self._thetas is None else norms.mul_(self._thetas)

    def _compute(self, first: int, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """|v W_O| of the heads of these layers, which begin with the `first`: [heads, n]."""
        heads = slice(first * self._num_value_heads, (first + len(values)) * self._num_value_heads)
        stacked = torch.cat(list(values)).float()  # (their value heads, n, d)
        products = torch.bmm(stacked, self._grams[heads]).unflatten(2, (-1, stacked.shape[2]))
        squares = products.mul_(stacked.unsqueeze(2)).sum(-1)  # (their value heads, n, sharing)
        return squares.clamp_(min=0).sqrt_().mT.flatten(0, 1)


def find_projections(
    passes: Sequence[LayerAttention], inputs: Sequence["ModuleInput"]
) -> list[torch.Tensor]:
    """Find each layer's output projection by what it was given: the heads' outputs as they are.

    Args:
        passes: one for each layer, of one pass.
        inputs: of every linear module within these layers' attention, in the same pass.

    Returns:
        For each layer [heads, head size, model width].

    Raises:
        UnavailableError: what the heads say is changed first, or goes through no linear module.
    """
    found = []
    for attended in passes:
        given = attended.output.flatten(2)  # (1, tokens, heads * size)
        fed = [
            entry
            for entry in inputs
            if entry.attention is attended.module and _are_equal(entry.tensor, given)
        ]
        if len(fed) != 1:
            raise UnavailableError(
                "the heads' outputs do not go through one linear projection as they are"
            )
        _, num_heads, size = attended.output.shape[1:]
        weight = _get_weight(fed[0].module)
        rows = weight.unflatten(0, (num_heads, size))
        _check_projection(fed[0].module, given, weight)
        found.append(rows)
    return found


class ModuleInput(NamedTuple):
    """What a module was called with.

    Attributes:
        attention: the attention module that it is part of.
        module: itself.
        tensor: its first argument.
    """

    attention: torch.nn.Module
    module: torch.nn.Module
    tensor: torch.Tensor


def _get_weight(module: Any) -> torch.Tensor:
    """As [inputs, outputs]. transformers' Conv1D keeps it so, torch's Linear the other way."""
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


def sum_contributions(
    weights: Sequence[torch.Tensor], norms: torch.Tensor, rows: Sequence[int] | None
) -> torch.Tensor:
    """What each position gave to the newest: float32 [R, W], shares before they add up to 1.

    Args:
        weights: each layer's, [B, heads, columns], the newest position last: the last W columns
            count, and a layer that has fewer sees nothing of the positions before them.
        norms: [R, K, W], see `OutputNorms.compute`.
        rows: which R of the B rows; None for all of them, in their order.
    """
    if rows is not None:
        index = torch.tensor(rows, device=norms.device)
        weights = [layer.index_select(0, index) for layer in weights]
    width = norms.shape[-1]
    stacked = torch.cat([_take_newest(layer, width) for layer in weights], 1)
    return stacked.float().mul_(norms).sum(1)


def _take_newest(weights: torch.Tensor, width: int) -> torch.Tensor:
    """The last columns; 0 for those that are not there."""
    missing = width - weights.shape[-1]
    if missing > 0:
        return torch.nn.functional.pad(weights, (missing, 0))
    return weights[..., -missing:]


def list_sources(contributions: torch.Tensor, lengths: Sequence[int]) -> list[Sources]:
    """Cut [R, W] into what is recorded of each row.

    Args:
        contributions: right-aligned, the newest position in the last column.
        lengths: how many positions each row has.
    """
    width = contributions.shape[1]
    shares = contributions / contributions.sum(1, keepdim=True)
    top = shares[:, :-1].topk(min(MAX_SOURCES, width - 1))
    rows = zip(
        top.values.tolist(), top.indices.tolist(), shares[:, -1].tolist(), lengths, strict=True
    )
    return [
        _make_sources(values, [column - (width - length) for column in columns], newest)
        for values, columns, newest, length in rows
    ]


def _make_sources(shares: list[float], positions: list[int], newest: float) -> Sources:
    if math.isnan(newest):
        return Sources([], [], None)
    num = sum(share > 0 for share in shares)
    return Sources(positions[:num], shares[:num], newest)
