"""Flow through one layer: how it divides among the positions that the layer reads."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch

from whence_server.engines.transformers.internals.attention import ReadAttention, probe_attention
from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.explain.branches import Branch, cut_branches, list_branches
from whence_server.explain.decomposition import get_head_weights
from whence_server.explain.freezing import FrozenNorms
from whence_server.explain.reading import ReadingPass, make_ids, read_logits

MAX_BLOCK_FLOATS = 1 << 24
"""Numbers of the largest tensor that is made for a block of positions; bounds the memory."""
LEAST_FLOW = 1e-9
"""Flow at a position below which it goes straight down, instead of being divided."""


class LayerInput(NamedTuple):
    """Arguments of a layer in a pass, and its output, [T, width]."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: torch.Tensor


@torch.no_grad()
def collect_inputs(
    model: Any, layers: Sequence[torch.nn.Module], one: ReadingPass
) -> list[LayerInput]:
    """Return each layer's arguments in a pass: so much is kept, in proportion to its length."""
    inputs: list[LayerInput] = []

    def keep(_layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        inputs.append(LayerInput(args, kwargs, hidden[0]))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(keep, with_kwargs=True).remove)
        read_logits(model, make_ids(model, one), one.num_places)
    if len(inputs) != len(layers):
        raise UnavailableError("its layers do not run once each")
    return inputs


class LayerFlow:
    """Division of flow by one layer.

    Args:
        layer: the layer, with the engine's attention function.
        inputs: arguments and outputs of all layers, in the pass.
        index: index of the layer.
        pairs_per_head: see `FlowOptions`.

    Raises:
        UnavailableError: the layer does not attend by our function, or does not add to its stream.
    """

    def __init__(
        self,
        layer: torch.nn.Module,
        inputs: Sequence[LayerInput],
        index: int,
        pairs_per_head: int,
    ) -> None:
        own = inputs[index]
        stream = own.args[0] if own.args else own.kwargs["hidden_states"]
        self._stream = stream[0].float()  # (T, width)
        self._pairs = pairs_per_head
        self._num_places = stream.shape[1]
        reads: list[ReadAttention] = []
        places = list_branches([layer])
        frozen = FrozenNorms(-1)
        with torch.enable_grad(), probe_attention(reads.append), frozen:
            with cut_branches(
                [layer], places, self._num_places, from_embedding=False, without_mlps=True
            ) as cuts:
                output = layer(*own.args, **own.kwargs)
            middle = (output[0] if isinstance(output, tuple) else output)[0]
        attention = _choose_attention(cuts.branches, reads, index)
        (slope,) = torch.autograd.grad(middle.sum(), attention.output, allow_unused=True)
        if slope is None:
            raise UnavailableError(f"layer {index} does not add its attention to its stream")
        self._slope = slope.float()  # (T, width)
        added = self._slope * attention.output.detach().float()
        _check_adds(self._stream + added, middle.detach().float(), index)
        is_serial = any(branch.depends for branch in cuts.branches if branch.place.is_mlp)
        self._sum = self._stream + added if is_serial else own.output.float()
        self._kept = self._sum - added  # What the position keeps: its stream, and a parallel MLP.
        self._read = reads[0]
        values = reads[0]().values[0].float()  # (value heads, T, size)
        num_heads = self._read().weights.shape[1]
        weights = get_head_weights(attention, num_heads)
        if weights is None:
            raise UnavailableError(
                f"the heads of layer {index} are not the unchanged input of one linear projection"
            )
        self._weights = weights  # (heads, size, width)
        self._values = values.repeat_interleave(num_heads // len(values), 0)  # (heads, T, size)
        self._check_heads(attention, index)
        self._lengths = self._measure_lengths()

    def _check_heads(self, attention: Branch, index: int) -> None:
        """Check that what is projected are the weighted sums of the values, without a gate.

        Raises:
            UnavailableError: they are not.
        """
        heads, size = self._weights.shape[:2]
        if self._values.shape[-1] == size and attention.given is not None:
            weights = self._read_weights([self._num_places - 1])[0]
            computed = torch.einsum("ht,htd->hd", weights, self._values)
            given = attention.given[-1].float().reshape(heads, size)
            precise = torch.finfo(attention.given.dtype).bits >= 32
            tolerance = (1e-3 if precise else 5e-2) * given.abs().max()
            if (computed - given).abs().max() <= tolerance:
                return
        raise UnavailableError(f"layer {index} changes its heads' outputs before projecting them")

    @torch.no_grad()
    def divide(self, flow: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Return the flow at the layer's input, and the flow-weighted share that was left out.

        Args:
            flow: flow at the layer's output, float64 [T].
        """
        below = torch.where(flow > LEAST_FLOW, 0, flow)
        left_out = 0.0
        heads, _, width = self._weights.shape
        num = min(self._pairs, self._num_places)
        block = max(1, MAX_BLOCK_FLOATS // (heads * num * width))
        rows = [i for i, amount in enumerate(flow.tolist()) if amount > LEAST_FLOW]
        for first in range(0, len(rows), block):
            some = rows[first : first + block]
            weights = self._read_weights(some)  # (R, heads, T)
            lengths = weights * self._lengths
            top = lengths.topk(num, -1)
            parts = self._compute_parts(weights, top.indices)  # (R, heads, num, width)
            target = self._sum[some]
            size = target.abs().sum(-1)
            moved = _measure_proximity(parts.mul_(self._slope[some, None, None]), target, size)
            kept = _measure_proximity(self._kept[some, None, None], target, size)[:, 0, 0]
            moved, kept = moved.double().cpu(), kept.double().cpu()
            total = moved.sum((1, 2)) + kept
            kept = torch.where(total > 0, kept, 1)  # What nothing is near to goes straight down.
            amounts = flow[some] / torch.where(total > 0, total, 1)
            shares = (moved * amounts[:, None, None]).flatten()
            below.index_add_(0, top.indices.flatten().cpu(), shares)
            below.index_add_(0, torch.tensor(some), kept * amounts)
            unseen = 1 - top.values.sum((1, 2)) / lengths.sum((1, 2)).clamp(min=1e-30)
            left_out += float((unseen.double().cpu() * flow[some]).sum())
        return below, left_out

    @torch.no_grad()
    def compute_terms(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return what each position adds to the logits directly, by each head: [n, heads, T].

        Args:
            gradient: gradient of the logits by the attention's output at the last n positions.
        """
        num = len(gradient)
        rows = list(range(self._num_places - num, self._num_places))
        back = torch.einsum("hdw,nw->nhd", self._weights, gradient.float())
        return self._read_weights(rows) * torch.einsum("htd,nhd->nht", self._values, back)

    def _read_weights(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the attention of some positions, [rows, heads, T]."""
        read = []
        for row in rows:
            weights = self._read(self._num_places - 1 - row).weights[0]
            missing = self._num_places - weights.shape[-1]
            read.append(torch.nn.functional.pad(weights, (0, missing)))
        return torch.stack(read)

    def _compute_parts(self, weights: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the vectors that heads bring from some columns: [R, heads, num, width]."""
        size = self._values.shape[-1]
        gathered = torch.gather(
            self._values.expand(len(columns), -1, -1, -1),
            2,
            columns.unsqueeze(-1).expand(-1, -1, -1, size),
        )  # (R, heads, num, size)
        scaled = gathered * weights.gather(2, columns).unsqueeze(-1)
        return torch.matmul(scaled, self._weights)

    def _measure_lengths(self) -> torch.Tensor:
        """Return the L1 norm of each value after its projection, [heads, T]."""
        heads, _, width = self._weights.shape
        block = max(1, MAX_BLOCK_FLOATS // (heads * width))
        return torch.cat(
            [
                torch.matmul(part, self._weights).abs().sum(-1)
                for part in torch.split(self._values, block, 1)
            ],
            1,
        )


def _measure_proximity(
    parts: torch.Tensor, target: torch.Tensor, size: torch.Tensor
) -> torch.Tensor:
    """Return max(|y| - |y - z|, 0) of parts [R, heads, num, width] of the sums [R, width]."""
    distances = (target[:, None, None] - parts).abs_().sum(-1)
    return (size[:, None, None] - distances).clamp_(min=0)


def _choose_attention(
    branches: Sequence[Branch], reads: Sequence[ReadAttention], index: int
) -> Branch:
    moving = [branch for branch in branches if not branch.place.is_mlp]
    if len(reads) != 1 or len(moving) != 1:
        raise UnavailableError(
            f"layer {index} moves information between positions otherwise than by attention alone, "
            "or by attention code of its own"
        )
    return moving[0]


def _check_adds(expected: torch.Tensor, middle: torch.Tensor, index: int) -> None:
    """Check that the layer adds its attention's output, scaled, to its stream."""
    tolerance = 1e-3 if torch.finfo(middle.dtype).bits >= 32 else 5e-2
    if not (expected - middle).abs().max() <= tolerance * middle.abs().max():
        raise UnavailableError(f"layer {index} does more to its stream than adding to it")
