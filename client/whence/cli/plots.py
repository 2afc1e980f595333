"""Small plots for a terminal: block characters, readable without colour and at 80 columns."""

import math
from collections.abc import Iterable, Sequence

BLOCKS = " ▁▂▃▄▅▆▇█"
"""A cell that is filled by no, one, ... eight eighths."""
NOT_A_NUMBER = "!"
NOTHING = "·"
_EIGHTHS = len(BLOCKS) - 1
_RAMP = (18, 20, 26, 31, 36, 71, 148, 226)
"""Blue to yellow in the 256-colour palette, one for each of `BLOCKS` but the first."""
_LABEL_COLUMNS = 9


def column_chart(values: Sequence[float], num_columns: int, num_rows: int = 6) -> list[str]:
    """The values from left to right as columns between the least and the greatest of them.

    Several values share a column, which then shows their mean; one that is not finite is told by
    a mark at the bottom.

    Args:
        values: at least one.
        num_columns: how wide the chart is, its labels included.
        num_rows: how high it is.
    """
    means = binned(values, num_columns - _LABEL_COLUMNS - 2)
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = (min(finite), max(finite)) if finite else (math.nan, math.nan)
    levels = [_level(mean, low, high, num_rows * _EIGHTHS) for mean in means]
    lines = []
    for row in reversed(range(num_rows)):
        cells = "".join(_cell(level, row) for level in levels)
        label = {num_rows - 1: high, 0: low}.get(row)
        shown = "" if label is None else number(label)
        lines.append(f"{shown:>{_LABEL_COLUMNS}} {'│' if label is None else '┤'}{cells}".rstrip())
    return lines


def axis(first: int, last: int, num_columns: int, indent: int = _LABEL_COLUMNS + 2) -> str:
    """The steps at both ends of a chart, below it."""
    begin, end = f"step {first:,}", f"{last:,}"
    return f"{'':>{indent}}{begin}{end:>{max(num_columns - indent - len(begin), len(end) + 1)}}"


class HeatScale:
    """Levels of a heat map's cells, logarithmic.

    The lowest level takes in the lowest twentieth of the values: a warm-up's first steps would
    otherwise take up the whole scale.

    Args:
        values: of all cells; those that are not above zero have no level.
    """

    def __init__(self, values: Iterable[float]) -> None:
        logarithms = sorted(math.log(value) for value in values if 0 < value < math.inf) or [0.0]
        self._low = logarithms[len(logarithms) // 20]
        self._high = logarithms[-1]

    def __str__(self) -> str:
        low, high = math.exp(self._low), math.exp(self._high)
        return f"{BLOCKS[1]} at most {low:.1e}, {BLOCKS[-1]} {high:.1e}, logarithmic in between"

    def cell(self, value: float, *, color: bool) -> str:
        """A value's cell: a mark of its own for zero, and for what is no number."""
        if not math.isfinite(value):
            return NOT_A_NUMBER
        if value <= 0:
            return NOTHING
        level = _level(max(math.log(value), self._low), self._low, self._high, _EIGHTHS)
        cell = BLOCKS[level]
        return f"\x1b[38;5;{_RAMP[level - 1]}m{cell}\x1b[39m" if color else cell


def bar(value: float, largest: float, num_columns: int) -> str:
    """A horizontal bar for a value from 0 to the largest."""
    if not (math.isfinite(value) and largest > 0):
        return ""
    eighths = round(max(value, 0.0) / largest * num_columns * _EIGHTHS)
    whole, rest = divmod(eighths, _EIGHTHS)
    return "█" * whole + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest]


def binned(values: Sequence[float], num_columns: int) -> list[float]:
    """The values' means in equal shares, one a column; stretched where there are fewer values.

    A share with a value that is not finite has no mean.
    """
    shares = []
    for column in range(num_columns):
        begin = column * len(values) // num_columns
        end = max(begin + 1, (column + 1) * len(values) // num_columns)
        share = values[begin:end]
        shares.append(math.fsum(share) / len(share) if all(map(math.isfinite, share)) else math.nan)
    return shares


def number(value: float) -> str:
    """A number in at most nine characters."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.4f}"
    shown = f"{value:.2e}"
    return shown if len(shown) <= _LABEL_COLUMNS else f"{value:.1e}"


def _level(value: float, low: float, high: float, num_levels: int) -> int:
    """From 1 to `num_levels`; 0 for what is not finite."""
    if not math.isfinite(value):
        return 0
    share = (value - low) / (high - low) if high > low else 0.5
    return 1 + round(share * (num_levels - 1))


def _cell(level: int, row: int) -> str:
    if level == 0:
        return NOT_A_NUMBER if row == 0 else " "
    return BLOCKS[min(max(level - row * _EIGHTHS, 0), _EIGHTHS)]
