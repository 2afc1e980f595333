"""Bounds of the numeric settings: taken at them, refused beyond, and safe for float32."""

import struct

import pytest

from whence_server.domain import bounds

LARGEST_FLOAT32 = 3.4028234e38


@pytest.mark.parametrize("bound", [0.01, 100.0, 1e-9, 1e9])
def test_a_bound_is_within_as_float32_too(bound: float) -> None:
    (arrived,) = struct.unpack("f", struct.pack("f", bound))
    assert bounds.is_within(arrived, bound, bound)
    assert not bounds.is_within(arrived * 1.01, bound / 2, bound)
    assert not bounds.is_within(arrived * 0.99, bound, bound * 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_within_nothing(value: float) -> None:
    assert not bounds.is_within(value, -LARGEST_FLOAT32, LARGEST_FLOAT32)


@pytest.mark.parametrize(
    ("num_tokens", "length_penalty", "held"),
    [
        (1, 100, True),
        (10, 20, True),
        (10, -20, True),
        (10, 21, False),
        (256, 8, True),
        (256, -100, False),
        (4096, 5, True),
        (131_072, 3.9, True),
        (131_072, 4, False),
    ],
)
def test_lengths_to_a_power_are_held(num_tokens: int, length_penalty: float, held: bool) -> None:
    assert bounds.is_length_power_held(num_tokens, length_penalty) is held


def test_the_largest_scores_are_float32() -> None:
    largest_score = (
        bounds.MAX_LOGIT_BIAS * bounds.MAX_REPETITION_PENALTY / bounds.MIN_REPETITION_PENALTY
    )
    assert largest_score / bounds.MIN_TEMPERATURE < LARGEST_FLOAT32 / 1e3
    of_a_sequence = bounds.MAX_LOGIT_BIAS * bounds.MAX_REPETITION_PENALTY * 131_072
    assert of_a_sequence * bounds.MAX_LENGTH_POWER < LARGEST_FLOAT32 / 1e1
