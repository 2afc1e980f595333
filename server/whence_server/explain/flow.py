"""Information flow through all layers, from the span back to the positions of the context.

Flow starts at the positions that predict the span, and goes down through the layers. In each layer
a position's stream is the sum of its earlier stream and of what the heads bring from the positions
that they attend to. The flow divides among these in proportion to

    proximity(z) = max(|y| - |y - z|, 0)        (L1 norms)

where y is the sum and z one of its parts. MLPs move nothing between positions. (Ferrando and Voita,
"Information Flow Routes: Automatically Interpreting Language Models at Scale", EMNLP 2024, section
2.) The flow of a whole span goes down in one sweep, as in Pan et al., "Towards Long-Horizon
Interpretability: Efficient and Faithful Multi-Token Attribution for Reasoning LLMs" (FlashTrace,
2026); with hops, flow that ends at generated tokens starts again at the positions that predicted
them.

With a contrast, flow starts where parts of the network push the logits apart directly: each term of
the decomposition of the difference in proportion to max(|d| - |d - term|, 0), where d is their sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from whence_server.engines.transformers.internals.layers import find_layers
from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.explain.decomposition import DirectGradients, read_gradients
from whence_server.explain.layer_flow import LayerFlow, LayerInput, collect_inputs
from whence_server.explain.memory import check_streams
from whence_server.explain.reading import ReadingPass, plan_passes
from whence_server.explain.scores import Progress
from whence_server.explain.target import Target


@dataclass(frozen=True)
class FlowOptions:
    """Options of the flow.

    Attributes:
        num_hops: number of times that flow at generated tokens starts again at their predictions.
        pairs_per_head: for each position and head, the number of positions with the longest
            vectors whose contributions are computed; others count as 0.
    """

    num_hops: int = 0
    pairs_per_head: int = 64


class FlowShares(NamedTuple):
    """Shares of the flow; `scores` and `span_share` add up to 1.

    Attributes:
        scores: share of each position before the span.
        span_share: share of the span's own tokens, which the model reads to predict later ones.
        left_out: share of the lengths of the heads' vectors that were not looked at, weighted by
            the flow that passes there; mean over layers.
        num_sweeps: number of times that the layers were swept.
    """

    scores: list[float]
    span_share: float
    left_out: float
    num_sweeps: int


def trace_flow(model: Any, target: Target, options: FlowOptions, progress: Progress) -> FlowShares:
    """Return the share of each position in the flow to the span.

    Args:
        model: a causal language model in eval mode, with the engine's attention function.
        target: what is explained.
        options: see `FlowOptions`.
        progress: called before any pass, and after each layer.

    Raises:
        ExplanationTooLargeError: the layers' outputs are too large to be kept.
        UnavailableError: a layer moves information otherwise than by the engine's attention, or
            does not add to its stream.
    """
    passes = plan_passes(target)
    num_sweeps = len(passes) * (1 + options.num_hops)
    counter = _Counter(progress, num_sweeps * len(list(find_layers(model))))
    check_streams(model, sum(len(one.ids) for one in passes))
    sweeps = [_Sweep(model, one, options.pairs_per_head) for one in passes]
    if target.against:
        found = _start_apart(model, sweeps, counter)
    else:
        first = target.start - 1
        found = [sweeps[0].run(_spread(range(first, len(sweeps[0].ids)), sweeps[0]), counter)]
    for _ in range(options.num_hops):
        found = [
            _hop(sweep, shares, target, counter)
            for sweep, shares in zip(sweeps, found, strict=True)
        ]
    scores = sum(shares[: target.start] for shares in found)
    span_share = sum(float(shares[target.start :].sum()) for shares in found)
    left_out = [share for sweep in sweeps for share in sweep.left_out]
    return FlowShares(
        torch.as_tensor(scores).tolist(), span_share, sum(left_out) / len(left_out), num_sweeps
    )


class _Counter:
    """Counter of the layers that were swept."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._done = 0
        self._total = total
        progress(0, total)

    def count(self) -> None:
        self._done += 1
        self._progress(min(self._done, self._total), self._total)


def _spread(positions: Sequence[int], sweep: "_Sweep") -> torch.Tensor:
    flow = torch.zeros(len(sweep.ids), dtype=torch.float64)
    flow[list(positions)] = 1 / len(positions)
    return flow


def _hop(sweep: "_Sweep", shares: torch.Tensor, target: Target, counter: _Counter) -> torch.Tensor:
    """Return the shares after the flow at generated tokens has gone down once more."""
    first = max(target.num_prompt, 1)
    kept, again = shares.clone(), torch.zeros_like(shares)
    kept[first:] = 0
    # The token at a position was predicted at the one before.
    again[first - 1 : -1] = shares[first:]
    return kept + sweep.run(again, counter)


class _Sweep:
    """Sweeper of one pass's layers, from the last to the first.

    Attributes:
        ids: token ids of the pass.
        left_out: share of the vectors' lengths that was not looked at, for each swept layer.
    """

    def __init__(self, model: Any, one: ReadingPass, pairs_per_head: int) -> None:
        self._pairs = pairs_per_head
        self._layers = list(find_layers(model))
        self.one = one
        self.ids = one.ids
        self.left_out: list[float] = []
        self._inputs: list[LayerInput] = collect_inputs(model, self._layers, one)

    def run(
        self, flow: torch.Tensor, counter: _Counter, direct: "_Direct | None" = None
    ) -> torch.Tensor:
        """Return the flow at the embeddings, float64 [T].

        Args:
            flow: flow at the positions of the last layer's output.
            counter: counts the layers.
            direct: starts of flow within the network; their sum is in `direct.total`.
        """
        for index in reversed(range(len(self._layers))):
            layer = LayerFlow(self._layers[index], self._inputs, index, self._pairs)
            if direct is not None:
                flow = direct.add_before(index, layer, flow)
            before = flow
            flow, left_out = layer.divide(flow)
            if direct is not None:
                flow = direct.add_after(index, layer, flow)
            self.left_out.append(left_out / max(float(before.sum()), 1e-12))
            counter.count()
        return flow if direct is None else direct.add_embedding(flow)


class _Direct:
    """Starts of flow: terms that push the logits of span and contrast apart.

    Args:
        gradients: direct gradients of the pass.
        total: sum of all terms, of all passes, without biases.
    """

    def __init__(self, gradients: DirectGradients, total: float) -> None:
        self._gradients = gradients
        self._total = total
        self._num = gradients.embedded[0].shape[0]

    def add_before(self, index: int, layer: LayerFlow, flow: torch.Tensor) -> torch.Tensor:
        """Add the MLP's terms, which depend on the stream after attention."""
        del layer
        flow = flow.clone()
        for branch, gradient in self._gradients.branches:
            if branch.layer == index and branch.place.is_mlp:
                flow[-self._num :] += self._weigh((branch.output * gradient).sum(-1))
        return flow

    def add_after(self, index: int, layer: LayerFlow, flow: torch.Tensor) -> torch.Tensor:
        """Add the heads' terms to the positions that they read."""
        flow = flow.clone()
        for branch, gradient in self._gradients.branches:
            if branch.layer == index and not branch.place.is_mlp:
                terms = layer.compute_terms(gradient)  # (n, heads, T)
                flow += self._weigh(terms).sum((0, 1))
        return flow

    def add_embedding(self, flow: torch.Tensor) -> torch.Tensor:
        flow = flow.clone()
        embedded, gradient = self._gradients.embedded
        flow[-self._num :] += self._weigh((embedded * gradient).sum(-1))
        return flow

    def _weigh(self, terms: torch.Tensor) -> torch.Tensor:
        """Return the proximity of each term to the total."""
        total = abs(self._total)
        return (total - (self._total - terms.detach().double().cpu()).abs()).clamp(min=0)


def _start_apart(model: Any, sweeps: Sequence[_Sweep], counter: _Counter) -> list[torch.Tensor]:
    """Return the flow of each pass, from where its terms push the logits apart; they sum to 1."""
    gradients = [read_gradients(model, sweep.one) for sweep in sweeps]
    total = sum(one.value - one.norm_bias - one.head_bias for one in gradients)
    flows = [
        sweep.run(torch.zeros(len(sweep.ids), dtype=torch.float64), counter, _Direct(one, total))
        for sweep, one in zip(sweeps, gradients, strict=True)
    ]
    whole = float(sum(flow.sum() for flow in flows))
    if not whole > 0:
        raise UnavailableError("no part of it pushes the logits of the span and the contrast apart")
    return [flow / whole for flow in flows]
