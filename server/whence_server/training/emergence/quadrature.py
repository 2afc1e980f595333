"""Adaptive Simpson quadrature of a function that gives many numbers at once."""

import heapq
from collections.abc import Callable
from itertools import count
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]

POINTS_OF_A_PANEL = 5
MORE_POINTS = 4
"""Of which a panel that is halved needs so many anew."""


class Integral(NamedTuple):
    """What an integration came to."""

    value: Vector
    error: float
    """Estimated, summed over the numbers."""
    num_points: int
    """At which the function was taken."""


class _Panel(NamedTuple):
    begin: float
    end: float
    values: tuple[Vector, ...]
    """At its five points, evenly spaced."""

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
        """What halving once more is expected to change (Lyness 1969, section 3)."""
        return float(np.abs(self.fine - self.coarse).sum()) / 15

    @property
    def value(self) -> Vector:
        """The fine rule with its estimated error taken off (Richardson)."""
        return self.fine + (self.fine - self.coarse) / 15


def integrate(
    function: Callable[[float], Vector],
    *,
    relative_tolerance: float,
    absolute_tolerance: float,
    max_points: int,
) -> Integral:
    """Integrate from 0 to 1, halving the panel with the largest estimated error.

    It ends once the estimated errors, summed over panels and numbers, are within a tolerance, or
    the next halving would take the function at too many points.

    Args:
        function: gives the integrand, always as many numbers.
        relative_tolerance: against the sum of the numbers' magnitudes.
        absolute_tolerance: the larger of the two counts.
        max_points: at most so many calls; at least 5.
    """
    values = tuple(function(point) for point in (0.0, 0.25, 0.5, 0.75, 1.0))
    order = count()  # panels themselves cannot be compared
    panels: list[tuple[float, int, _Panel]] = []
    _push(panels, order, _Panel(0.0, 1.0, values))
    num_points = POINTS_OF_A_PANEL
    while True:
        value = np.sum([panel.value for _, _, panel in panels], axis=0)
        error = -sum(priority for priority, _, _ in panels)
        tolerance = max(absolute_tolerance, relative_tolerance * float(np.abs(value).sum()))
        if error <= tolerance or num_points + MORE_POINTS > max_points:
            return Integral(value, error, num_points)
        _, _, panel = heapq.heappop(panels)
        for half in _halves(panel, function):
            _push(panels, order, half)
        num_points += MORE_POINTS


def _halves(panel: _Panel, function: Callable[[float], Vector]) -> tuple[_Panel, _Panel]:
    begin, end, values = panel
    middle, eighth = (begin + end) / 2, (end - begin) / 8
    between = [function(begin + eighth * n) for n in (1, 3, 5, 7)]
    left = (values[0], between[0], values[1], between[1], values[2])
    right = (values[2], between[2], values[3], between[3], values[4])
    return _Panel(begin, middle, left), _Panel(middle, end, right)


def _push(panels: list[tuple[float, int, _Panel]], order: "count[int]", panel: _Panel) -> None:
    heapq.heappush(panels, (-panel.error, next(order), panel))
