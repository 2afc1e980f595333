"""Gradient x input, and integrated gradients.

The score of a position is the sum over its embedding's dimensions of

    gradient x input:       x * df/dx
    integrated gradients:   (x - b) * integral over a in [0, 1] of df/dx at b + a * (x - b)

where f is the explained value, x the embedding and b a baseline. (Sundararajan, Taly, Yan,
"Axiomatic Attribution for Deep Networks", ICML 2017.) The scores of integrated gradients add up to
f(x) - f(b), up to the error of the numerical integral: the completeness gap. The same holds of each
piece of the path, so that the pieces with the largest gaps are halved until the sum of the absolute
gaps is small enough. Models with RMSNorm change most close to a zero baseline, where few equal
steps would miss it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.explain.memory import count_rows, recompute_if_long
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

NODES_PER_PIECE = 4
"""Gauss-Legendre nodes of a piece of the path."""
FIRST_PIECES = (0.0, 0.125, 1.0)


@dataclass(frozen=True)
class PathOptions:
    """Options of integrated gradients.

    Attributes:
        baseline: "zero", "mean" (of all embeddings), or the id of a token whose embedding it is.
        max_gap: completeness gap at which refining ends, as a share of |f(x) - f(b)|.
        max_steps: most gradients that are computed.
        num_steps: number of Gauss-Legendre nodes on the whole path, without refining; 0 refines.
    """

    baseline: str = "zero"
    max_gap: float = 0.05
    max_steps: int = 128
    num_steps: int = 0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range.
        """
        if self.baseline not in {"zero", "mean"} and not self.baseline.isdecimal():
            raise ValueError(
                f"baseline: {self.baseline!r} is not known; expected zero, mean or a token id"
            )
        if not 0 < self.max_gap <= 1:
            raise ValueError(f"max_gap: {self.max_gap} is out of range; expected above 0, up to 1")
        least = NODES_PER_PIECE * (len(FIRST_PIECES) - 1)
        if self.max_steps < least:
            raise ValueError(f"max_steps: {self.max_steps} is too few; expected at least {least}")
        if self.num_steps < 0:
            raise ValueError(f"num_steps: {self.num_steps} is out of range; expected 0 or more")


class GradientScores(NamedTuple):
    """Scores of a method by gradients.

    Attributes:
        scores: score of each position before the span.
        value: explained value.
        baseline_value: value at the baseline.
        gap: value - baseline_value - sum(scores); 0 of gradient x input, which need not add up.
        num_steps: number of gradients.
    """

    scores: list[float]
    value: float
    baseline_value: float
    gap: float
    num_steps: int


def multiply_gradient(model: Any, target: Target, progress: Progress) -> GradientScores:
    """Return the scores of gradient x input.

    Raises:
        UnavailableError: the model's embeddings cannot be replaced.
    """
    progress(0, 1)
    path = _Path(model, target, "zero")
    values, scores = path.compute([1.0])
    progress(1, 1)
    return GradientScores(scores[0].tolist(), float(values[0]), 0.0, 0.0, 1)


def integrate_gradients(
    model: Any, target: Target, options: PathOptions, progress: Progress
) -> GradientScores:
    """Return the scores of integrated gradients.

    Raises:
        UnavailableError: the model's embeddings cannot be replaced.
        ValueError: the baseline is no token of the vocabulary.
    """
    path = _Path(model, target, options.baseline)
    integral = _Integral(path, options, progress)
    if options.num_steps:
        integral.add_piece(0.0, 1.0, options.num_steps)
    else:
        for begin, end in pairwise(FIRST_PIECES):
            integral.add_piece(begin, end, NODES_PER_PIECE)
        integral.refine()
    return integral.conclude()


class _Piece(NamedTuple):
    """Integral over a piece of the path: scores of the positions, and the gap of their sum."""

    begin: float
    end: float
    scores: torch.Tensor
    gap: float


class _Integral:
    """Integral of the gradients over a path, in pieces."""

    def __init__(self, path: "_Path", options: PathOptions, progress: Progress) -> None:
        self._path = path
        self._options = options
        self._progress = progress
        self._pieces: list[_Piece] = []
        self._values: dict[float, float] = {}
        self._num_steps = 0

    def add_piece(self, begin: float, end: float, num_nodes: int) -> None:
        nodes, weights = np.polynomial.legendre.leggauss(num_nodes)
        half = (end - begin) / 2
        places = [begin + half * (float(node) + 1) for node in nodes]
        scores = torch.zeros(self._path.num_positions, dtype=torch.float64)
        rows = self._path.num_rows
        for first in range(0, num_nodes, rows):
            self._progress(self._num_steps, self._plan())
            _, found = self._path.compute(places[first : first + rows])
            factors = torch.from_numpy(weights[first : first + rows]) * half
            scores += (found.double() * factors.unsqueeze(1)).sum(0)
            self._num_steps += len(found)
        change = self._get_value(end) - self._get_value(begin)
        self._pieces.append(_Piece(begin, end, scores, change - float(scores.sum())))

    def refine(self) -> None:
        """Halve the pieces with the largest gaps, until the gap or the number of steps is met."""
        allowed = self._options.max_gap * abs(self._get_value(1.0) - self._get_value(0.0))
        while sum(abs(piece.gap) for piece in self._pieces) > allowed:
            if self._num_steps + 2 * NODES_PER_PIECE > self._options.max_steps:
                return
            worst = max(self._pieces, key=lambda piece: abs(piece.gap))
            middle = (worst.begin + worst.end) / 2
            self._pieces.remove(worst)
            self.add_piece(worst.begin, middle, NODES_PER_PIECE)
            self.add_piece(middle, worst.end, NODES_PER_PIECE)

    def conclude(self) -> GradientScores:
        scores = torch.stack([piece.scores for piece in self._pieces]).sum(0)
        value, baseline_value = self._get_value(1.0), self._get_value(0.0)
        gap = value - baseline_value - float(scores.sum())
        self._progress(self._num_steps, self._num_steps)
        return GradientScores(scores.tolist(), value, baseline_value, gap, self._num_steps)

    def _get_value(self, place: float) -> float:
        if place not in self._values:
            self._values[place] = self._path.compute_value(place)
        return self._values[place]

    def _plan(self) -> int:
        return self._options.num_steps or self._options.max_steps


class _Path:
    """Straight line from a baseline to the embeddings of the positions before the span.

    Attributes:
        num_positions: number of these positions.
        num_rows: number of gradients that are computed together.
    """

    def __init__(self, model: Any, target: Target, baseline: str) -> None:
        self._model = model
        self._passes = plan_passes(target)
        self.num_positions = target.start
        longest = max(len(one.ids) for one in self._passes)
        self.num_rows = count_rows(model, longest)
        with torch.no_grad():
            embed = model.get_input_embeddings()
            self._embedded = [embed(make_ids(model, one)) for one in self._passes]
            if self._embedded[0].dim() != 3:
                raise UnavailableError("its input embedding gives no vector for each token")
            self._end = self._embedded[0][0, : target.start]  # (positions, width)
            self._begin = _make_baseline(model, baseline, self._end)

    def compute(self, places: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values [m] and scores [m, positions]: the gradient times the path's direction."""
        with torch.enable_grad():
            context = self._mix(places).requires_grad_()  # (m, positions, width)
            values = self._read(context)
            (gradient,) = torch.autograd.grad(values.sum(), context)
        scores = (gradient.float() * (self._end - self._begin).float()).sum(-1)
        return values.detach().cpu(), scores.cpu()

    @torch.no_grad()
    def compute_value(self, place: float) -> float:
        """Return the explained value at a place of the path."""
        return float(self._read(self._mix([place]))[0])

    def _mix(self, places: Sequence[float]) -> torch.Tensor:
        shares = torch.tensor(list(places), dtype=torch.float64, device=self._end.device)
        shares = shares.to(self._end.dtype)[:, None, None]
        mixed: torch.Tensor = self._begin + shares * (self._end - self._begin)
        return mixed

    def _read(self, context: torch.Tensor) -> torch.Tensor:
        """Return the value of each row, [m], from the embeddings of its context."""
        values = [
            self._read_pass(one, embedded, context)
            for one, embedded in zip(self._passes, self._embedded, strict=True)
        ]
        return torch.stack(values).sum(0)

    def _read_pass(
        self, one: ReadingPass, embedded: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        rows = len(context)
        rest = embedded[:, self.num_positions :].expand(rows, -1, -1)
        ids = make_ids(self._model, one).expand(rows, -1)
        with (
            replace_embeddings(self._model, torch.cat((context, rest), 1)),
            recompute_if_long(self._model, ids.numel()),
        ):
            return sum_logprobs(read_logits(self._model, ids, one.num_places), one.reads)


def _make_baseline(model: Any, baseline: str, like: torch.Tensor) -> torch.Tensor:
    """Return the baseline, [1, width] or [positions, width].

    Raises:
        ValueError: it is no token of the vocabulary.
    """
    if baseline == "zero":
        return torch.zeros_like(like)
    embed = model.get_input_embeddings()
    size = embed.weight.shape[0]
    if baseline == "mean":
        ids = torch.arange(size, device=like.device)
        total = sum(embed(part).double().sum(0) for part in torch.split(ids, 4096))
        mean: torch.Tensor = (total / size).to(like.dtype)
        return mean.expand_as(like)
    if int(baseline) >= size:
        raise ValueError(f"baseline: token {baseline} is not in the vocabulary of {size} tokens")
    token: torch.Tensor = embed(torch.tensor([int(baseline)], device=like.device))
    return token.expand_as(like)
