"""Euclidean norms of each parameter group's update in a step, and of its weights.

A copy of the weights is kept; both are read once for each step, in pieces that fit the CPU cache.
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
from whence_server.training.recording.norm_kernels import sum_squares

_CHUNK = 1 << 16
"""Elements in one piece: their differences, 256 KiB in float32, fit a core's cache."""
_WORTH_A_THREAD = 1 << 19
"""Number of elements from which a second thread is faster."""


class Norms(NamedTuple):
    """Euclidean norms, one for each group."""

    updates: list[float]
    weights: list[float]


Squares = dict["_MeasuredParameter", tuple[float, float]]
"""Sums of squares of the change since the copy and of the weights, by parameter."""


class NormMeter:
    """Meter of update and weight norms; `copy_weights` and `measure_step` go around each step.

    Args:
        model: model with the parameters.
        groups: groups of its parameters.
        stride: the steps whose numbers are multiples of it are measured.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], stride: int) -> None:
        by_name = dict(model.named_parameters())
        self._groups = [
            [_MeasuredParameter(by_name[name]) for name in group.parameter_names]
            for group in groups
            if group.name != FROZEN
        ]
        self._frozen = {
            place: _compute_norm([by_name[name] for name in group.parameter_names])
            for place, group in enumerate(groups)
            if group.name == FROZEN
        }
        """Norms of frozen groups, by index of the group; they are not copied."""
        self._stride = stride
        self._has_copies = False

    @torch.no_grad()
    def copy_weights(self, step: int) -> None:
        """Copy the weights before a step that is measured."""
        if not self._measures(step) or (self._has_copies and self._stride == 1):
            return
        for group in self._groups:
            for followed in group:
                followed.copy()
        self._has_copies = True

    @torch.no_grad()
    def measure_step(self, step: int) -> Norms | None:
        """Return the norms of the step that was just made; None if it is not measured."""
        if not self._measures(step) or not self._has_copies:
            return None
        plain = self._sum_plain_squares()
        squares = [_sum_squares(group, plain) for group in self._groups]
        roots = torch.stack(squares).sqrt().tolist() if squares else []
        for place, size in self._frozen.items():
            roots.insert(place, [0.0, size])
        return Norms([update for update, _ in roots], [weight for _, weight in roots])

    def _sum_plain_squares(self) -> Squares:
        """Return the squares of the kernel's parameters, computed by up to two threads.

        Memory bandwidth limits the kernel, so that a second core helps. The thread ends with the
        step, as data loaders fork this process, and a process with threads should not be forked.
        """
        every = [followed for group in self._groups for followed in group if followed.is_plain]
        sizes = [followed.num_elements for followed in every]
        if torch.get_num_threads() == 1 or sum(sizes) < _WORTH_A_THREAD:
            return _sum_all_plain_squares(every)
        middle = bisect_left(list(accumulate(sizes)), sum(sizes) / 2)
        with ThreadPoolExecutor(1, "norms") as pool:
            rest = pool.submit(_sum_all_plain_squares, every[middle:])
            return _sum_all_plain_squares(every[:middle]) | rest.result()

    def _measures(self, step: int) -> bool:
        return step % self._stride == 0


@torch.no_grad()
def _compute_norm(parameters: Sequence[nn.Parameter]) -> float:
    """Return the Euclidean norm of the floating-point parameters."""
    squares = (
        p.float().square().sum(dtype=torch.float64) for p in parameters if p.is_floating_point()
    )
    return float(sum(map(float, squares)) ** 0.5)


class _Piece(NamedTuple):
    """Views of a range of a parameter's elements."""

    weights: torch.Tensor
    copied: torch.Tensor
    change: torch.Tensor
    """Buffer for the differences, in float32."""


class _MeasuredParameter:
    """Parameter and its copy."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter = parameter
        self._copy = torch.empty(0)
        self._pieces: list[_Piece] = []
        self._place = 0, 0
        """Addresses of parameter and copy when `_arrays` was made."""
        self._arrays: tuple[npt.NDArray[np.float32], ...] = ()

    @property
    def num_elements(self) -> int:
        """Number of elements of the parameter."""
        return self._parameter.numel()

    def copy(self) -> None:
        """Update the copy."""
        if not self._copy.numel():
            self._copy = torch.empty(
                self._parameter.shape, dtype=self._parameter.dtype, device=self._parameter.device
            )
        self._copy.copy_(self._parameter)

    @property
    def is_plain(self) -> bool:
        """True if the compiled kernel applies: contiguous float32 on the CPU."""
        parameter = self._parameter
        is_here = parameter.device.type == "cpu" and parameter.dtype == torch.float32
        return is_here and parameter.is_contiguous()

    def sum_squares(self) -> tuple[float, float]:
        """Return the sums of squares of the change and of the weights; update the copy."""
        place = self._parameter.data_ptr(), self._copy.data_ptr()
        if place != self._place:
            self._place = place
            self._arrays = tuple(
                tensor.detach().view(-1).numpy() for tensor in (self._parameter, self._copy)
            )
        change, size = sum_squares(*self._arrays)
        return change, size

    def split(self) -> list[_Piece]:
        """Return pieces over all elements, made again if the parameter's memory has moved."""
        parameter = self._parameter.detach()
        moved = not self._pieces or self._pieces[0].weights.data_ptr() != parameter.data_ptr()
        if moved or not parameter.is_contiguous():
            self._pieces = list(_split(parameter.contiguous().view(-1), self._copy.view(-1)))
        return self._pieces


def _split(weights: torch.Tensor, copied: torch.Tensor) -> Iterator[_Piece]:
    on_cpu = weights.device.type == "cpu"
    size = max(1, min(_CHUNK, len(weights)) if on_cpu else len(weights))
    change = torch.empty(size, dtype=torch.float32, device=weights.device)
    for begin in range(0, len(weights), size):
        some = weights[begin : begin + size]
        yield _Piece(some, copied[begin : begin + size], change[: len(some)])


def _sum_all_plain_squares(every: Sequence[_MeasuredParameter]) -> Squares:
    return {followed: followed.sum_squares() for followed in every}


def _sum_squares(group: Sequence[_MeasuredParameter], plain: Squares) -> torch.Tensor:
    """Return the sums of squares of the change and of the weights; update the copies.

    The result has shape (2,), in float64 if the device supports it.

    Args:
        group: parameters.
        plain: known results of parameters whose copies are updated already.
    """
    known = [plain[followed] for followed in group if followed in plain]
    total = torch.tensor(known, dtype=torch.float64).view(-1, 2).sum(0)
    sums = []
    for followed in group:
        for weights, copied, change in () if followed in plain else followed.split():
            exact = weights if weights.dtype == torch.float32 else weights.float()
            torch.sub(exact, copied, out=change)
            sums += [torch.dot(change, change), torch.dot(exact, exact)]
            copied.copy_(weights)
    if not sums:
        return total
    together = torch.stack(sums)
    wide = torch.float32 if together.device.type == "mps" else torch.float64
    return total + together.to(wide).view(-1, 2).sum(0).cpu()
