"""Bounds of the numeric settings, which keep scores within float32 at every stage.

The largest score is a bias of 1e9, times a penalty of 100, divided by a temperature of 1e-9: 1e20.
In beam search it is 1e11 for each token, at most 1e16 for the tokens that a cache holds, times a
length to the power of the length penalty, at most 1e20: 1e36. float32 ends at 3.4e38.
"""

import math

MAX_LOGIT_BIAS = 1e9
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
MIN_TEMPERATURE = 1e-9
MAX_TEMPERATURE = 1e9
MAX_NO_REPEAT_NGRAM_SIZE = 128
"""Bound of the n in n-grams: each step compares all n-grams, which delays other requests."""
MAX_LENGTH_PENALTY = 100.0
MAX_LENGTH_POWER = 1e20
"""Bound of max_new_tokens to the power of the length penalty."""

_ROUNDING = 1e-6
"""Relative tolerance: the contract's numbers are float32, and 0.01 arrives as 0.0099999998."""


def is_within(value: float, lowest: float, highest: float) -> bool:
    """Return whether a number lies between two bounds, inclusive, up to float32 rounding."""
    return _is_below(lowest, value) and _is_below(value, highest)


def is_length_power_held(num_tokens: int, length_penalty: float) -> bool:
    """Return whether a length to the power of the length penalty is within MAX_LENGTH_POWER."""
    power = math.log10(max(num_tokens, 1)) * abs(length_penalty)
    return _is_below(power, math.log10(MAX_LENGTH_POWER))


def _is_below(low: float, high: float) -> bool:
    return low <= high or math.isclose(low, high, rel_tol=_ROUNDING)
