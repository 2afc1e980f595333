"""Adaptive Simpson against integrals that are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence_server.training.emergence.quadrature import Integral, integrate


def integrated(function, max_points: int = 1_001, tolerance: float = 1e-9) -> Integral:
    return integrate(
        function, relative_tolerance=0.0, absolute_tolerance=tolerance, max_points=max_points
    )


@given(st.lists(st.floats(-100, 100), min_size=6, max_size=6))
def test_polynomials_of_the_fifth_degree_are_exact_with_five_points(factors: list[float]) -> None:
    integral = integrated(
        lambda t: np.array([sum(c * t**n for n, c in enumerate(factors))]), max_points=5
    )
    expected = math.fsum(c / (n + 1) for n, c in enumerate(factors))
    assert integral.value[0] == pytest.approx(expected, abs=1e-9)
    assert integral.num_points == 5


def test_many_numbers_are_integrated_at_once_and_a_peak_is_found() -> None:
    def function(t: float) -> np.ndarray:
        return np.array([math.exp(t), 1 / (1e-3 + (t - 0.3) ** 2), math.sin(20 * t)])

    integral = integrated(function, tolerance=1e-7)
    width = math.sqrt(1e-3)
    peak = (math.atan(0.7 / width) + math.atan(0.3 / width)) / width
    expected = [math.e - 1, peak, (1 - math.cos(20)) / 20]
    assert integral.value == pytest.approx(expected, abs=1e-6)
    assert integral.error <= 1e-7
    assert integral.num_points < 1_001


def test_no_point_is_taken_twice_and_the_bound_holds() -> None:
    taken: list[float] = []

    def function(t: float) -> np.ndarray:
        taken.append(t)
        return np.array([math.sin(100 * t)])

    integral = integrated(function, max_points=31)
    assert integral.num_points == len(taken) == len(set(taken)) == 29
    assert integral.error > 1e-9


def test_the_tolerance_may_be_relative() -> None:
    loose = integrate(
        lambda t: np.array([1e6 * math.sin(9 * t)]),
        relative_tolerance=1e-2,
        absolute_tolerance=0.0,
        max_points=1_001,
    )
    exact = 1e6 * (1 - math.cos(9)) / 9
    assert loose.value[0] == pytest.approx(exact, rel=1e-2)
    assert loose.num_points < integrated(lambda t: np.array([1e6 * math.sin(9 * t)])).num_points
