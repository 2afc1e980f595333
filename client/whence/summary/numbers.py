"""Numbers for people: probabilities in per cent, and float32 values in the fewest digits."""

import math
import struct
from math import exp, floor

_LEAST_NORMAL = 2.0**-126
_FLOAT32 = struct.Struct("<f")
_PACK = _FLOAT32.pack

TENTHS = tuple(f"{tenths / 10:.1f}%" for tenths in range(1_001))
"""Tenths of a per cent as text, because formatting a number takes several times as long."""
LEAST_IN_TENTHS = math.log(0.002)
"""Logprob from which on a probability has one decimal."""

HUNDREDTHS = tuple(f"{hundredths / 100:.2f}" for hundredths in range(1_001))
"""Numbers from 0 to 10 with two decimals."""


def shorten_float32(value: float) -> float:
    """Return the number with the fewest decimal digits that is the same float32.

    The float32 nearest to 0.1 is 0.10000000149011612 as a float64, which JSON and spans would show.
    Nine digits always suffice, and six are never too many for a normal number.

    Args:
        value: a float32, as protobuf returns it, or a number that is rounded to one; NaN and
            infinities are returned unchanged.
    """
    if not math.isfinite(value):
        return value
    stored = _PACK(value)
    # The digits of a number between two float32 values may lie beside the shortest ones.
    (value,) = _FLOAT32.unpack(stored)
    for num_digits in range(6 if abs(value) >= _LEAST_NORMAL else 1, 9):
        number = float(f"{value:.{num_digits}g}")
        if _PACK(number) == stored:
            return number
    return float(f"{value:.9g}")


def format_probability(logprob: float) -> str:
    """Return a logprob as a probability in per cent.

    One decimal; below 0.2% two significant digits, because one decimal would be too coarse.
    """
    if LEAST_IN_TENTHS <= logprob <= 0:
        return TENTHS[floor(1_000 * exp(logprob) + 0.5)]
    if logprob < 0:
        return f"{100 * exp(logprob):.2g}%"
    return f"{exp(min(logprob, 1.0)):.1%}"  # noise above 1, or NaN


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 token", "2,000 tokens"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
