"""Adaptive Simpson quadrature of a vector-valued function."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]

POINTS_PER_PANEL = 5
NEW_POINTS_PER_SPLIT = 4
"""Number of new points that halving a panel needs."""


class Integral(NamedTuple):
    """Value of an integral, with its estimated error."""

    value: Vector
    error: float
    """Estimated error, summed over the vector's elements."""
    num_points: int
    """Number of points at which the function was evaluated."""


class _Panel(NamedTuple):
    begin: float
    end: float
    values: tuple[Vector, ...]
    """Function values at five evenly spaced points."""

    @property
    def coarse(self) -> Vector:
        """Simpson's rule over three of the points."""
        first, _, middle, _, last = self.values
        return (first + 4 * middle + last) * ((self.end - self.begin) / 6)

    @property
    def fine(self) -> Vector:
        """Simpson's rule over each half."""
        first, second, middle, fourth, last = self.values
        return (first + 4 * second + 2 * middle + 4 * fourth + last) * (
            (self.end - self.begin) / 12
        )

    @property
    def error(self) -> float:
        """Estimated error of the fine rule, summed over elements (Lyness 1969, section 3)."""
        return float(np.abs(self.fine - self.coarse).sum()) / 15

    @property
    def value(self) -> Vector:
        """Fine rule with Richardson extrapolation."""
        return self.fine + (self.fine - self.coarse) / 15


def integrate(
    function: Callable[[float], Vector],
    *,
    relative_tolerance: float,
    absolute_tolerance: float,
    max_points: int,
) -> Integral:
    """Integrate from 0 to 1, halving the panel with the largest estimated error.

    It ends once the estimated error, summed over panels and elements, is within the tolerance, or
    the next halving would exceed `max_points`.

    Args:
        function: the integrand; every call returns the same number of elements.
        relative_tolerance: bound relative to the sum of the elements' magnitudes.
        absolute_tolerance: absolute bound; the larger of the two bounds applies.
        max_points: largest number of calls of the function, at least 5.
    """
    values = tuple(function(point) for point in (0.0, 0.25, 0.5, 0.75, 1.0))
    order = count()  # panels themselves cannot be compared
    panels: list[tuple[float, int, _Panel]] = []
    _push(panels, order, _Panel(0.0, 1.0, values))
    num_points = POINTS_PER_PANEL
    while True:
        value = np.sum([panel.value for _, _, panel in panels], axis=0)
        error = -sum(priority for priority, _, _ in panels)
        tolerance = max(absolute_tolerance, relative_tolerance * float(np.abs(value).sum()))
        if error <= tolerance or num_points + NEW_POINTS_PER_SPLIT > max_points:
            return Integral(value, error, num_points)
        _, _, panel = heapq.heappop(panels)
        for half in _split(panel, function):
            _push(panels, order, half)
        num_points += NEW_POINTS_PER_SPLIT


def _split(panel: _Panel, function: Callable[[float], Vector]) -> tuple[_Panel, _Panel]:
    begin, end, values = panel
    middle, eighth = (begin + end) / 2, (end - begin) / 8
    between = [function(begin + eighth * n) for n in (1, 3, 5, 7)]
    left = (values[0], between[0], values[1], between[1], values[2])
    right = (values[2], between[2], values[3], between[3], values[4])
    return _Panel(begin, middle, left), _Panel(middle, end, right)


def _push(panels: list[tuple[float, int, _Panel]], order: "count[int]", panel: _Panel) -> None:
    heapq.heappush(panels, (-panel.error, next(order), panel))
