"""Decomposition of a logit into what each part of the network added to it.

The residual stream is the sum of the embedding and of what the heads and MLPs of all layers added.
With the scales of the norms frozen, the logit before a soft cap is linear in the stream, so that it
is the sum of each part's term: its direct effect. (Elhage et al., "A Mathematical Framework for
Transformer Circuits", 2021, for the residual stream as a sum.) The terms say nothing about what a
part did for later parts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from whence_server.engines.transformers.internals.layers import find_layers
from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.explain.branches import (
    Branch,
    Cuts,
    cut_branches,
    list_branches,
    list_last_linears,
)
from whence_server.explain.freezing import FrozenNorms
from whence_server.explain.reading import (
    ReadingPass,
    make_ids,
    plan_passes,
    read_logits,
    sum_logits,
)
from whence_server.explain.scores import Progress
from whence_server.explain.target import Target

PRECISE_TOLERANCE = 1e-4
"""Largest residual in float32, as a share of the sum of the terms' sizes."""
COARSE_TOLERANCE = 5e-2
"""The same for types of 16 bits, whose stream is rounded after each branch."""


@dataclass
class Decomposition:
    """A logit, or the difference of logits, as a sum of terms.

    For a span of several tokens it is the sum over the tokens.

    Attributes:
        value: the logit before a soft cap, as the pass computed it.
        embedding: term of the embedding, with positions that are added to it.
        heads: term of each head of each layer; empty if the heads cannot be told apart.
        attention_rests: for each layer, the terms of what is neither a head nor an MLP: the bias
            of the attention's projection, a recurrent mixer, attention without separate heads.
        mlps: term of each layer's MLP, with its biases.
        norm_bias: term of the biases of the norms on the stream, the final norm's for one.
        head_bias: term of the output head's bias.
        residual: value minus the sum of all terms: rounding.
    """

    value: float
    embedding: float
    heads: list[list[float]]
    attention_rests: list[float]
    mlps: list[float]
    norm_bias: float
    head_bias: float
    residual: float = field(init=False)

    def __post_init__(self) -> None:
        """Compute the residual."""
        self.residual = self.value - self.total

    @property
    def total(self) -> float:
        """Sum of all terms."""
        heads = sum(sum(layer) for layer in self.heads)
        layers = sum(self.attention_rests) + sum(self.mlps)
        return self.embedding + heads + layers + self.norm_bias + self.head_bias


def decompose(model: Any, target: Target, progress: Progress) -> Decomposition:
    """Return the span's logit, or its difference to the contrast's, as a sum of terms.

    Raises:
        UnavailableError: the terms do not add up to the logit: the model's layers are not sums of
            branches. The message says by how much.
    """
    passes = plan_passes(target)
    found = []
    for done, one in enumerate(passes):
        progress(done, len(passes))
        found.append(_add_terms(model, read_gradients(model, one)))
    progress(len(passes), len(passes))
    return found[0] if len(found) == 1 else _add(*found)


@dataclass(frozen=True)
class DirectGradients:
    """Gradients of a pass's logits along the residual stream.

    Attributes:
        value: signed sum of the logits, before a soft cap.
        embedded: the embedding and its gradient.
        branches: each branch and the gradient of its output, [n, width].
        norm_bias: term of the norms' biases.
        head_bias: term of the output head's bias.
        num_layers: number of layers.
    """

    value: float
    embedded: tuple[torch.Tensor, torch.Tensor]
    branches: list[tuple[Branch, torch.Tensor]]
    norm_bias: float
    head_bias: float
    num_layers: int


def read_gradients(model: Any, one: ReadingPass) -> DirectGradients:
    """Return the gradients of a pass's logits by what each branch added.

    Raises:
        UnavailableError: the branches do not add up to the logit.
    """
    layers = list(find_layers(model))
    direct = _try_places(model, one, layers, list_branches(layers))
    if direct is None:
        places = list_last_linears(model, make_ids(model, one))
        direct = _try_places(model, one, layers, places)
    if direct is None:
        raise UnavailableError(
            "its layers do not add branches to a residual stream that reaches from the embedding "
            "to the output head"
        )
    _check_sum(model, direct)
    return direct


@torch.enable_grad()
def _try_places(
    model: Any, one: ReadingPass, layers: list[torch.nn.Module], places: Any
) -> DirectGradients | None:
    """Return the gradients; None if the embedding has none, because a branch adds the stream."""
    head = model.get_output_embeddings()
    frozen = FrozenNorms(head.weight.shape[0])
    with _add_zeros(head) as zeros, cut_branches(layers, places, one.num_places) as cuts, frozen:
        logits = read_logits(model, make_ids(model, one), one.num_places)
        value = sum_logits(logits, one.reads).sum()
    leaves = [*zeros, *_list_leaves(cuts), *frozen.biases]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    at_head, at_embedding = gradients[:2]
    if at_embedding is None or at_head is None or cuts.embedded is None:
        return None
    num = len(cuts.branches)
    biases = zip(frozen.biases, gradients[2 + num :], strict=True)
    own = getattr(head, "bias", None)
    return DirectGradients(
        float(value.detach()),
        (cuts.embedded.detach(), at_embedding),
        [
            (branch, gradient)
            for branch, gradient in zip(cuts.branches, gradients[2 : 2 + num], strict=True)
            if gradient is not None
        ],
        sum(_dot(bias, gradient) for bias, gradient in biases if gradient is not None),
        _dot(own, at_head) if own is not None else 0.0,
        len(layers),
    )


def _list_leaves(cuts: Cuts) -> list[torch.Tensor]:
    if cuts.embedded is None:
        raise UnavailableError("its first layer does not run")
    return [cuts.embedded, *(branch.output for branch in cuts.branches)]


@contextmanager
def _add_zeros(head: Any) -> Iterator[list[torch.Tensor]]:
    """Add zeros to the head's output, whose gradient is that of the head's bias."""
    zeros = head.weight.new_zeros(head.weight.shape[0]).requires_grad_()
    handle = head.register_forward_hook(lambda _head, _args, output: output + zeros)
    try:
        yield [zeros]
    finally:
        handle.remove()


def _check_sum(model: Any, direct: DirectGradients) -> None:
    """Check that the terms add up to the value, but for rounding.

    Raises:
        UnavailableError: they do not.
    """
    terms = [_dot(*direct.embedded), direct.norm_bias, direct.head_bias]
    terms += [_dot(branch.output, gradient) for branch, gradient in direct.branches]
    residual = direct.value - sum(terms)
    precise = torch.finfo(model.dtype).bits >= 32
    tolerance = PRECISE_TOLERANCE if precise else COARSE_TOLERANCE
    if not abs(residual) <= tolerance * (sum(abs(term) for term in terms) + 1):
        raise UnavailableError(
            f"the terms of its layers add up to {sum(terms):.6g}, and the logit is "
            f"{direct.value:.6g}: a part of its residual stream is not a sum of branches"
        )


def _add_terms(model: Any, direct: DirectGradients) -> Decomposition:
    """Return the terms of each layer's heads, MLP and others."""
    num_layers = direct.num_layers
    num_heads = count_heads(model)
    heads = [[0.0] * num_heads for _ in range(num_layers)]
    rests, mlps = [0.0] * num_layers, [0.0] * num_layers
    has_heads = False
    for branch, gradient in direct.branches:
        term = _dot(branch.output, gradient)
        if branch.place.is_mlp:
            mlps[branch.layer] += term
            continue
        split = split_heads(branch, gradient, num_heads)
        if split is not None:
            has_heads = True
            heads[branch.layer] = [a + b for a, b in zip(heads[branch.layer], split, strict=True)]
            term -= sum(split)
        rests[branch.layer] += term
    return Decomposition(
        direct.value,
        _dot(*direct.embedded),
        heads if has_heads else [],
        rests,
        mlps,
        direct.norm_bias,
        direct.head_bias,
    )


def count_heads(model: Any) -> int:
    """Return the number of attention heads of a layer; 0 if there are none."""
    config = model.config.get_text_config(decoder=True)
    return int(getattr(config, "num_attention_heads", None) or 0)


def split_heads(branch: Branch, gradient: torch.Tensor, num_heads: int) -> list[float] | None:
    """Return the term of each of a branch's heads; None if it has no separate heads.

    Args:
        branch: a branch.
        gradient: gradient of its output, [n, width].
        num_heads: number of heads, which feed the projection side by side.
    """
    weight = get_head_weights(branch, num_heads)
    if weight is None or branch.given is None:
        return None
    given = branch.given.float().reshape(len(branch.given), num_heads, -1)  # (n, heads, size)
    return [float(x) for x in torch.einsum("nhd,hdw,nw->h", given, weight, gradient.float())]


def get_head_weights(branch: Branch, num_heads: int) -> torch.Tensor | None:
    """Return the projection of each head, [heads, size, width]; None if there is none."""
    given, projection = branch.given, branch.projection
    if given is None or projection is None or not branch.place.attends or not num_heads:
        return None
    if given.shape[-1] % num_heads:
        return None
    weight: Any = projection.weight
    weight = (weight.mT if isinstance(projection, torch.nn.Linear) else weight).float()
    bias: Any = getattr(projection, "bias", None)
    computed = given.float() @ weight + (0 if bias is None else bias.float())
    tolerance = 1e-3 if torch.finfo(given.dtype).bits >= 32 else 5e-2
    error = (computed - branch.output.float()).abs().max()
    if not error <= tolerance * branch.output.abs().max():
        return None
    heads: torch.Tensor = weight.reshape(num_heads, -1, weight.shape[-1])
    return heads


def _add(one: Decomposition, other: Decomposition) -> Decomposition:
    return Decomposition(
        one.value + other.value,
        one.embedding + other.embedding,
        [
            [a + b for a, b in zip(mine, its, strict=True)]
            for mine, its in zip(one.heads, other.heads, strict=True)
        ],
        [a + b for a, b in zip(one.attention_rests, other.attention_rests, strict=True)],
        [a + b for a, b in zip(one.mlps, other.mlps, strict=True)],
        one.norm_bias + other.norm_bias,
        one.head_bias + other.head_bias,
    )


def _dot(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.detach().double() * other.double()).sum())
