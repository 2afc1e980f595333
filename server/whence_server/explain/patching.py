"""Causal tracing: which activations carry what a corrupted prompt lost.

The model reads a corrupted prompt. Then single activations are restored, one position of one
layer's output at a time, and the share of the lost value that comes back is measured. (Meng, Bau,
Andonian, Belinkov, "Locating and Editing Factual Associations in GPT", NeurIPS 2022, section 2.)
Meng et al. measure the token's probability. Here it is the explained value: log probabilities, or
the difference to a contrast's.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from whence_server.engines.transformers.internals.layers import (
    find_layers,
    replace_layers,
    run_first_layer,
)
from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.explain.memory import check_streams
from whence_server.explain.reading import (
    ReadingPass,
    make_ids,
    plan_passes,
    read_logits,
    replace_embeddings,
    sum_logprobs,
)
from whence_server.explain.scores import Progress
from whence_server.explain.target import Target

NOISE_SCALE = 3.0
"""Standard deviation of the noise, in standard deviations of the embeddings (Meng et al.)."""
MAX_TOKENS_TOGETHER = 2048
"""Tokens in the rows of one pass."""


@dataclass(frozen=True)
class Corruption:
    """Change of the prompt that a run has to recover from.

    Attributes:
        begin: first corrupted position.
        end: position after the last corrupted one.
        replacement: token ids in their place, as many; empty to add noise to the embeddings.
        num_noises: number of noises over which the values are averaged.
        seed: seed of the noise.
    """

    begin: int
    end: int
    replacement: tuple[int, ...] = ()
    num_noises: int = 3
    seed: int = 0


class PatchingMap(NamedTuple):
    """Shares of the lost value that restored activations recover.

    Attributes:
        value: explained value of the clean run.
        corrupted_value: mean explained value of the corrupted runs.
        positions: restored positions.
        shares: for each layer, the recovered share of each position. 0: as the corrupted run; 1:
            as the clean one; it can be below 0 or above 1.
        num_passes: number of sequences that were read, in part or whole.
    """

    value: float
    corrupted_value: float
    positions: list[int]
    shares: list[list[float]]
    num_passes: int


class NothingLostError(ValueError):
    """The corruption does not lower the explained value, so that nothing can be recovered."""


@torch.no_grad()
def patch(
    model: Any,
    target: Target,
    corruption: Corruption,
    positions: Sequence[int],
    progress: Progress,
    *,
    layers: Sequence[int] | None = None,
) -> PatchingMap:
    """Return the recovered share of each position and layer.

    Args:
        model: a causal language model in eval mode.
        target: what is explained.
        corruption: corrupted part of the context.
        positions: positions whose activations are restored, one at a time.
        progress: called before any run, and after each layer of each run.
        layers: indices of the layers whose outputs are restored; None for all.

    Raises:
        ValueError: a position, a layer or the corruption is out of range.
        ExplanationTooLargeError: the layers' outputs are too large to be kept.
        NothingLostError: the corrupted value is not below the clean one.
        UnavailableError: the model's layers cannot be replaced.
    """
    every = list(find_layers(model))
    chosen = list(range(len(every))) if layers is None else list(layers)
    _check(target, corruption, positions, chosen, len(every))
    passes = plan_passes(target)
    num_noises = 1 if corruption.replacement else corruption.num_noises
    total = len(passes) * num_noises * len(chosen)
    value, corrupted = 0.0, 0.0
    restored = torch.zeros(len(chosen), len(positions), dtype=torch.float64)
    num_passes = 0
    progress(0, total)
    # Those of the clean run and of a corrupted one.
    check_streams(model, 2 * max(len(one.ids) for one in passes))
    like = run_first_layer(model, every)
    for index, one in enumerate(passes):
        clean = _run(model, every, one, None)
        value += clean.value
        for noise in range(num_noises):
            patcher = _Patcher(model, every, one, like, clean.outputs)
            embedded = _corrupt(model, one, corruption, noise)
            base = _run(model, every, one, embedded)
            corrupted += base.value / num_noises
            for row, layer in enumerate(chosen):
                found = patcher.restore(embedded, base.outputs[layer], layer, positions)
                restored[row] += found / num_noises
                progress((index * num_noises + noise) * len(chosen) + row + 1, total)
            num_passes += 1 + len(chosen) * len(positions)
        num_passes += 1
    if not value > corrupted:
        raise NothingLostError(
            f"the corrupted positions {corruption.begin} to {corruption.end} do not lower the "
            f"explained value: it is {value:.4f} without and {corrupted:.4f} with the "
            "corruption; choose a part of the context that matters"
        )
    shares = (restored - corrupted) / (value - corrupted)
    return PatchingMap(value, corrupted, list(positions), shares.tolist(), num_passes)


def _check(
    target: Target,
    corruption: Corruption,
    positions: Sequence[int],
    layers: Sequence[int],
    num_layers: int,
) -> None:
    if not 0 <= corruption.begin < corruption.end <= target.start:
        raise ValueError(
            f"the corrupted positions {corruption.begin} to {corruption.end} are not a part of "
            f"the context, which has positions 0 to {target.start}"
        )
    length = corruption.end - corruption.begin
    if corruption.replacement and len(corruption.replacement) != length:
        raise ValueError(
            f"the replacement has {len(corruption.replacement)} tokens, and the part that it "
            f"replaces has {length}; expected as many"
        )
    if not corruption.replacement and corruption.num_noises < 1:
        raise ValueError(f"num_noises: {corruption.num_noises} is too few; expected at least 1")
    if not positions or not all(0 <= position < target.start for position in positions):
        raise ValueError(f"positions: expected some of 0 to {target.start - 1}, got {positions}")
    if not layers or not all(0 <= layer < num_layers for layer in layers):
        raise ValueError(f"layers: expected some of 0 to {num_layers - 1}, got {list(layers)}")


class _Run(NamedTuple):
    """One run: its value, and each layer's output, [1, T, width]."""

    value: float
    outputs: list[torch.Tensor]


def _run(
    model: Any, layers: Sequence[torch.nn.Module], one: ReadingPass, embedded: torch.Tensor | None
) -> _Run:
    outputs: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda _layer, _args, output: outputs.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        for layer in layers
    ]
    try:
        value = float(_read(model, one, embedded, 1)[0])
    finally:
        for handle in handles:
            handle.remove()
    if len(outputs) != len(layers):
        raise UnavailableError("its layers do not run once each")
    return _Run(value, outputs)


def _read(
    model: Any, one: ReadingPass, embedded: torch.Tensor | None, num_rows: int
) -> torch.Tensor:
    """Return each row's value, [rows]."""
    ids = make_ids(model, one).expand(num_rows, -1)
    if embedded is None:
        return sum_logprobs(read_logits(model, ids, one.num_places), one.reads)
    with replace_embeddings(model, embedded.expand(num_rows, -1, -1)):
        return sum_logprobs(read_logits(model, ids, one.num_places), one.reads)


def _corrupt(model: Any, one: ReadingPass, corruption: Corruption, noise: int) -> torch.Tensor:
    """Return the embeddings of the corrupted tokens, [1, T, width]."""
    embed = model.get_input_embeddings()
    part = slice(corruption.begin, corruption.end)
    if corruption.replacement:
        ids = make_ids(model, one)
        ids[0, part] = torch.tensor(corruption.replacement, device=ids.device)
        replaced: torch.Tensor = embed(ids)
        return replaced
    embedded: torch.Tensor = embed(make_ids(model, one)).clone()
    scale = NOISE_SCALE * _measure_spread(embed)
    # Drawn on the CPU in float32, so that every device and type adds the same noise.
    generator = torch.Generator().manual_seed(corruption.seed + noise)
    drawn = torch.randn(embedded[0, part].shape, generator=generator) * scale
    embedded[0, part] += drawn.to(embedded)
    return embedded


def _measure_spread(embed: Any) -> float:
    """Return the standard deviation of the entries of all tokens' embeddings."""
    size = embed.weight.shape[0]
    total, squares, count = 0.0, 0.0, 0
    for ids in torch.split(torch.arange(size, device=embed.weight.device), 4096):
        vectors = embed(ids).double()
        total += float(vectors.sum())
        squares += float(vectors.square().sum())
        count += vectors.numel()
    return float(max(squares / count - (total / count) ** 2, 0.0) ** 0.5)


class _Patcher:
    """Runs that start after a layer, from a corrupted stream with one position restored.

    Args:
        model: a causal language model.
        layers: its layers.
        one: pass that is read.
        like: output of a layer, for its form.
        clean: each layer's output in the clean run.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[torch.nn.Module],
        one: ReadingPass,
        like: Any,
        clean: Sequence[torch.Tensor],
    ) -> None:
        self._model = model
        self._layers = layers
        self._one = one
        self._like = like
        self._clean = clean

    def restore(
        self, embedded: torch.Tensor, corrupted: torch.Tensor, layer: int, positions: Sequence[int]
    ) -> torch.Tensor:
        """Return the value with each position of a layer's output restored, float64 [positions]."""
        together = max(1, MAX_TOKENS_TOGETHER // corrupted.shape[1])
        found = []
        for first in range(0, len(positions), together):
            some = positions[first : first + together]
            stream = corrupted.repeat(len(some), 1, 1)
            for row, position in enumerate(some):
                stream[row, position] = self._clean[layer][0, position]
            with self._start_after(layer, stream):
                found.append(_read(self._model, self._one, embedded, len(some)).double().cpu())
        return torch.cat(found)

    @contextmanager
    def _start_after(self, layer: int, stream: torch.Tensor) -> Iterator[None]:
        """Have the layers up to this one give `stream`, without computing."""
        with replace_layers(self._layers[: layer + 1], lambda _hidden: stream, self._like):
            yield
