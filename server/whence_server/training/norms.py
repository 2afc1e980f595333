"""Measures how far each group of parameters moved in a step, and how large it is.

It keeps a copy of the weights, and reads both once a step, in pieces that stay in the cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from whence_server.training.groups import Group

_CHUNK = 1 << 16
"""Elements at a time: their differences, 256 KiB in float32, stay in a core's cache."""


class Norms(NamedTuple):
    """Euclidean norms, one for each group."""

    updates: list[float]
    weights: list[float]


class NormMeter:
    """Measures one step in so many; see `before_step` and `after_step`.

    Args:
        model: whose parameters.
        groups: what they are measured by.
        stride: one step in so many is measured, the first of them the `stride`-th.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], stride: int) -> None:
        by_name = dict(model.named_parameters())
        self._groups = [[by_name[name] for name in group.parameter_names] for group in groups]
        self._stride = stride
        self._copies: list[list[torch.Tensor]] = []

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Has to be called with the weights as they are before a step."""
        if not self._measures(step) or (self._copies and self._stride == 1):
            return
        if not self._copies:
            self._copies = [
                [torch.empty_like(p, memory_format=torch.contiguous_format) for p in group]
                for group in self._groups
            ]
        for parameters, copies in zip(self._groups, self._copies, strict=True):
            for parameter, copy in zip(parameters, copies, strict=True):
                copy.copy_(parameter)

    @torch.no_grad()
    def after_step(self, step: int) -> Norms | None:
        """The norms of a step that was just made; None where it is not measured."""
        if not self._measures(step) or not self._copies:
            return None
        squares = [
            _squares(parameters, copies)
            for parameters, copies in zip(self._groups, self._copies, strict=True)
        ]
        roots = torch.stack(squares).sqrt().tolist()
        return Norms([update for update, _ in roots], [weight for _, weight in roots])

    def _measures(self, step: int) -> bool:
        return step % self._stride == 0


def _squares(parameters: Sequence[nn.Parameter], copies: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sums of squares of the change since the copies and of the weights; makes the copies anew.

    Shape (2,), in float64 where the device has it.
    """
    pieces = []
    for parameter, copy in zip(parameters, copies, strict=True):
        now, before = parameter.detach().contiguous().view(-1), copy.view(-1)
        size = min(_CHUNK, now.numel()) if now.device.type == "cpu" else now.numel()
        change = torch.empty(size, dtype=torch.float32, device=now.device)
        for begin in range(0, now.numel(), size or 1):
            weights = now[begin : begin + size].float()
            stored = before[begin : begin + size]
            moved = torch.sub(weights, stored, out=change[: len(weights)])
            pieces += [torch.dot(moved, moved), torch.dot(weights, weights)]
            stored.copy_(weights)
    sums = torch.stack(pieces) if pieces else torch.zeros(2)
    wide = torch.float32 if sums.device.type == "mps" else torch.float64
    return sums.to(wide).view(-1, 2).sum(0).cpu()
