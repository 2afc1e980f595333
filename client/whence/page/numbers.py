"""Numbers of the page's record: five digits, and null where JSON has no number."""

import math
from collections.abc import Iterable


def round_numbers(values: Iterable[float]) -> list[float | None]:
    """Return each number as `round_number` does."""
    return [round_number(value) for value in values]


def round_number(value: float) -> float | None:
    """Return a number with five digits; None for an infinity or NaN."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
