"""Plots of block characters for a terminal, readable without colour and at 80 columns."""

import math
from collections.abc import Iterable, Sequence

BLOCKS = " ▁▂▃▄▅▆▇█"
"""Cells filled by 0 to 8 eighths."""
NOT_A_NUMBER = "!"
NOTHING = "·"
_EIGHTHS = len(BLOCKS) - 1
_RAMP = (18, 20, 26, 31, 36, 71, 148, 226)
"""Colours of the 256-colour palette, blue to yellow, for each of `BLOCKS` but the first."""
_LABEL_COLUMNS = 9


def draw_columns(values: Sequence[float], num_columns: int, num_rows: int = 6) -> list[str]:
    """Draw values as a column chart from their minimum to their maximum; return its lines.

    A column is the mean of its values; with a value that is not finite, it has a mark at the
    bottom.

    Args:
        values: values from left to right, at least one.
        num_columns: width of the chart with its labels, in characters.
        num_rows: height of the chart, in lines.
    """
    means = compute_bin_means(values, num_columns - _LABEL_COLUMNS - 2)
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = (min(finite), max(finite)) if finite else (math.nan, math.nan)
    levels = [_choose_level(mean, low, high, num_rows * _EIGHTHS) for mean in means]
    lines = []
    for row in reversed(range(num_rows)):
        cells = "".join(_choose_block(level, row) for level in levels)
        label = {num_rows - 1: high, 0: low}.get(row)
        shown = "" if label is None else format_number(label)
        lines.append(f"{shown:>{_LABEL_COLUMNS}} {'│' if label is None else '┤'}{cells}".rstrip())
    return lines


def format_axis(first: int, last: int, num_columns: int, indent: int = _LABEL_COLUMNS + 2) -> str:
    """Return the axis below a chart, with the first and the last step."""
    begin, end = f"step {first:,}", f"{last:,}"
    return f"{'':>{indent}}{begin}{end:>{max(num_columns - indent - len(begin), len(end) + 1)}}"


class HeatScale:
    """Logarithmic levels of a heat map's cells.

    The lowest level holds the lowest twentieth of the values: otherwise the first steps of a
    warm-up would use most of the scale.

    Args:
        values: values of all cells; values that are not above 0 have no level.
    """

    def __init__(self, values: Iterable[float]) -> None:
        logarithms = sorted(math.log(value) for value in values if 0 < value < math.inf) or [0.0]
        self._low = logarithms[len(logarithms) // 20]
        self._high = logarithms[-1]

    def __str__(self) -> str:
        low, high = math.exp(self._low), math.exp(self._high)
        return f"{BLOCKS[1]} at most {low:.1e}, {BLOCKS[-1]} {high:.1e}, logarithmic in between"

    def draw_cell(self, value: float, *, color: bool) -> str:
        """Return a value's cell; 0 and values that are not finite have their own marks."""
        if not math.isfinite(value):
            return NOT_A_NUMBER
        if value <= 0:
            return NOTHING
        level = _choose_level(max(math.log(value), self._low), self._low, self._high, _EIGHTHS)
        cell = BLOCKS[level]
        return f"\x1b[38;5;{_RAMP[level - 1]}m{cell}\x1b[39m" if color else cell


def format_bar(value: float, largest: float, num_columns: int) -> str:
    """Return a horizontal bar for a value from 0 to the largest."""
    if not (math.isfinite(value) and largest > 0):
        return ""
    eighths = round(max(value, 0.0) / largest * num_columns * _EIGHTHS)
    whole, rest = divmod(eighths, _EIGHTHS)
    return "█" * whole + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest]


def compute_bin_means(values: Sequence[float], num_columns: int) -> list[float]:
    """Return the means of equal shares of the values, one for each column.

    Fewer values than columns are repeated. The mean of a share with a value that is not finite is
    NaN.
    """
    shares = []
    for column in range(num_columns):
        begin = column * len(values) // num_columns
        end = max(begin + 1, (column + 1) * len(values) // num_columns)
        share = values[begin:end]
        shares.append(math.fsum(share) / len(share) if all(map(math.isfinite, share)) else math.nan)
    return shares


def format_number(value: float) -> str:
    """Format a number in at most nine characters."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.4f}"
    shown = f"{value:.2e}"
    return shown if len(shown) <= _LABEL_COLUMNS else f"{value:.1e}"


def _choose_level(value: float, low: float, high: float, num_levels: int) -> int:
    """Return a level from 1 to `num_levels`; 0 for a value that is not finite."""
    if not math.isfinite(value):
        return 0
    share = (value - low) / (high - low) if high > low else 0.5
    return 1 + round(share * (num_levels - 1))


def _choose_block(level: int, row: int) -> str:
    if level == 0:
        return NOT_A_NUMBER if row == 0 else " "
    return BLOCKS[min(max(level - row * _EIGHTHS, 0), _EIGHTHS)]
