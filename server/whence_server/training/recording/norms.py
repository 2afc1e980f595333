"""Measures how far each group of parameters moved in a step, and how large it is.

It keeps a copy of the weights, and reads both once a step, in pieces that stay in the cache.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from whence_server.training.recording.groups import FROZEN, Group
from whence_server.training.recording.norm_kernels import sums_of_squares

_CHUNK = 1 << 16
"""Elements at a time: their differences, 256 KiB in float32, stay in a core's cache."""
_WORTH_A_THREAD = 1 << 19
"""Elements in all; of fewer, starting a thread would take as long."""


class Norms(NamedTuple):
    """Euclidean norms, one for each group."""

    updates: list[float]
    weights: list[float]


Squares = dict["_Followed", tuple[float, float]]
"""Sums of squares of the change since the copy and of the weights, by parameter."""


class NormMeter:
    """Measures one step in so many; see `before_step` and `after_step`.

    Args:
        model: whose parameters.
        groups: what they are measured by.
        stride: one step in so many is measured, the first of them the `stride`-th.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], stride: int) -> None:
        by_name = dict(model.named_parameters())
        self._groups = [
            [_Followed(by_name[name]) for name in group.parameter_names]
            for group in groups
            if group.name != FROZEN
        ]
        self._frozen = {
            place: _size([by_name[name] for name in group.parameter_names])
            for place, group in enumerate(groups)
            if group.name == FROZEN
        }
        """Norms of what no step moves, by its place among the groups; no copy is taken of it."""
        self._stride = stride
        self._has_copies = False

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Have to be called with the weights as they are before a step."""
        if not self._measures(step) or (self._has_copies and self._stride == 1):
            return
        for group in self._groups:
            for followed in group:
                followed.copy()
        self._has_copies = True

    @torch.no_grad()
    def after_step(self, step: int) -> Norms | None:
        """The norms of a step that was just made; None where it is not measured."""
        if not self._measures(step) or not self._has_copies:
            return None
        plain = self._plain_squares()
        squares = [_squares(group, plain) for group in self._groups]
        roots = torch.stack(squares).sqrt().tolist() if squares else []
        for place, size in self._frozen.items():
            roots.insert(place, [0.0, size])
        return Norms([update for update, _ in roots], [weight for _, weight in roots])

    def _plain_squares(self) -> Squares:
        """Of all that one pass of a compiled loop does, by two threads if torch may have them.

        The loop waits for memory, and a second core waits for its own. A thread lives for one step:
        a process that has some of its own should not be forked, and data loaders fork this one.
        """
        every = [followed for group in self._groups for followed in group if followed.is_plain]
        sizes = [followed.num_elements for followed in every]
        if torch.get_num_threads() == 1 or sum(sizes) < _WORTH_A_THREAD:
            return _all_plain_squares(every)
        middle = bisect_left(list(accumulate(sizes)), sum(sizes) / 2)
        with ThreadPoolExecutor(1, "norms") as pool:
            rest = pool.submit(_all_plain_squares, every[middle:])
            return _all_plain_squares(every[:middle]) | rest.result()

    def _measures(self, step: int) -> bool:
        return step % self._stride == 0


@torch.no_grad()
def _size(parameters: Sequence[nn.Parameter]) -> float:
    """The Euclidean norm of parameters, of those that are numbers and not packed bits."""
    squares = (
        p.float().square().sum(dtype=torch.float64) for p in parameters if p.is_floating_point()
    )
    return float(sum(map(float, squares)) ** 0.5)


class _Piece(NamedTuple):
    """Some of a parameter's elements, as views that are made once."""

    weights: torch.Tensor
    copied: torch.Tensor
    change: torch.Tensor
    """Room for the differences, in float32."""


class _Followed:
    """A parameter and its copy."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._copy = torch.empty(0)
        self._pieces: list[_Piece] = []
        self._place = 0, 0
        """Where both lay when `_arrays`, their elements in a row, were made."""
        self._arrays: tuple[npt.NDArray[np.float32], ...] = ()

    @property
    def num_elements(self) -> int:
        """Of the parameter."""
        return self._parameter.numel()

    def copy(self) -> None:
        """Make the copy anew."""
        if not self._copy.numel():
            self._copy = torch.empty(
                self._parameter.shape, dtype=self._parameter.dtype, device=self._parameter.device
            )
        self._copy.copy_(self._parameter)

    @property
    def is_plain(self) -> bool:
        """Whether one pass of a compiled loop does: float32 that lies in a row on the CPU."""
        parameter = self._parameter
        is_here = parameter.device.type == "cpu" and parameter.dtype == torch.float32
        return is_here and parameter.is_contiguous()

    def plain_squares(self) -> tuple[float, float]:
        """Sum of squares of the change and of the weights; makes the copy anew."""
        place = self._parameter.data_ptr(), self._copy.data_ptr()
        if place != self._place:
            self._place = place
            self._arrays = tuple(
                tensor.detach().view(-1).numpy() for tensor in (self._parameter, self._copy)
            )
        change, size = sums_of_squares(*self._arrays)
        return change, size

    def pieces(self) -> list[_Piece]:
        """All of it; as it lies now, should it have been moved."""
        parameter = self._parameter.detach()
        moved = not self._pieces or self._pieces[0].weights.data_ptr() != parameter.data_ptr()
        if moved or not parameter.is_contiguous():
            self._pieces = list(_pieces(parameter.contiguous().view(-1), self._copy.view(-1)))
        return self._pieces


def _pieces(weights: torch.Tensor, copied: torch.Tensor) -> Iterator[_Piece]:
    on_cpu = weights.device.type == "cpu"
    size = max(1, min(_CHUNK, len(weights)) if on_cpu else len(weights))
    change = torch.empty(size, dtype=torch.float32, device=weights.device)
    for begin in range(0, len(weights), size):
        some = weights[begin : begin + size]
        yield _Piece(some, copied[begin : begin + size], change[: len(some)])


def _all_plain_squares(every: Sequence[_Followed]) -> Squares:
    return {followed: followed.plain_squares() for followed in every}


def _squares(group: Sequence[_Followed], plain: Squares) -> torch.Tensor:
    """Sum of squares of the change since the copies and of the weights; makes the copies anew.

    Shape (2,), in float64 where the device has it.

    Args:
        group: parameters.
        plain: of those for which they are computed already, whose copies are new.
    """
    known = [plain[followed] for followed in group if followed in plain]
    total = torch.tensor(known, dtype=torch.float64).view(-1, 2).sum(0)
    sums = []
    for followed in group:
        for weights, copied, change in () if followed in plain else followed.pieces():
            exact = weights if weights.dtype == torch.float32 else weights.float()
            torch.sub(exact, copied, out=change)
            sums += [torch.dot(change, change), torch.dot(exact, exact)]
            copied.copy_(weights)
    if not sums:
        return total
    together = torch.stack(sums)
    wide = torch.float32 if together.device.type == "mps" else torch.float64
    return total + together.to(wide).view(-1, 2).sum(0).cpu()
