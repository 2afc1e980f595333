"""Plots of block characters: heights by value, and marks for values that are not finite."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.cli.plots import (
    BLOCKS,
    HeatScale,
    compute_bin_means,
    draw_columns,
    format_axis,
    format_bar,
)

FINITE = st.floats(-1e6, 1e6)


def heights(lines: list[str], num_columns: int) -> list[int]:
    """Return the filled eighths of every column of a chart."""
    drawn = [line.ljust(num_columns)[11:] for line in lines]
    return [sum(BLOCKS.index(cell) for cell in column) for column in zip(*drawn, strict=True)]


@given(st.lists(FINITE, min_size=1, max_size=200))
def test_a_chart_keeps_its_width_and_the_values_order(values: list[float]) -> None:
    lines = draw_columns(values, 80)
    assert len(lines) == 6
    assert all(len(line) <= 80 for line in lines)
    drawn = heights(lines, 80)
    means = compute_bin_means(values, 69)
    assert len(drawn) == len(means) == 69
    order = sorted(range(69), key=means.__getitem__)
    assert [drawn[i] for i in order] == sorted(drawn)
    assert min(drawn) >= 1
    if max(means) > min(means):
        assert (min(drawn), max(drawn)) == (1, 48)


def test_a_chart_is_labelled_by_its_extremes() -> None:
    lines = draw_columns([4.0, 3.0, 2.0, 1.0], 15, 2)
    assert lines == [
        "   4.0000 ┤█▃",
        "   1.0000 ┤██▆▁",
    ]
    assert format_axis(1, 700, 40) == f"{'':11}step 1{'700':>23}"


def test_what_is_no_number_is_marked_at_the_bottom() -> None:
    lines = draw_columns([1.0, math.nan, 2.0, math.inf], 15, 2)
    assert [line[11:].ljust(4) for line in lines] == ["  █ ", "▁!█!"]
    assert draw_columns([math.nan], 13, 1) == ["      nan ┤!!"]


@given(st.lists(FINITE, min_size=1, max_size=50), st.integers(1, 60))
def test_means_cover_every_value_once_or_stretch(values: list[float], num_columns: int) -> None:
    means = compute_bin_means(values, num_columns)
    assert len(means) == num_columns
    if len(values) % num_columns == 0:
        assert math.fsum(means) * (len(values) // num_columns) == pytest.approx(
            math.fsum(values), abs=1e-3
        )
    assert min(values) - 1e-6 <= min(means) <= max(means) <= max(values) + 1e-6


def test_a_heat_map_is_logarithmic_and_tells_zero_from_little() -> None:
    scale = HeatScale([1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    drawn = "".join(scale.draw_cell(10.0**-n, color=False) for n in range(8, 0, -1))
    assert drawn == BLOCKS[1:]
    assert scale.draw_cell(0.0, color=False) == "·"
    assert scale.draw_cell(math.nan, color=False) == "!"
    assert scale.draw_cell(1e-1, color=True) == "\x1b[38;5;226m█\x1b[39m"
    assert str(scale) == "▁ at most 1.0e-08, █ 1.0e-01, logarithmic in between"
    assert HeatScale([]).draw_cell(0.0, color=False) == "·"


def test_a_few_small_values_do_not_take_up_the_scale() -> None:
    scale = HeatScale([1e-12, *[1e-3] * 30, *[1e-2] * 30])
    assert scale.draw_cell(1e-12, color=False) == scale.draw_cell(1e-3, color=False) == BLOCKS[1]
    assert scale.draw_cell(1e-2, color=False) == BLOCKS[-1]


def test_bars_are_as_long_as_their_values() -> None:
    assert format_bar(2.0, 2.0, 4) == "████"
    assert format_bar(1.0, 2.0, 4) == "██"
    assert (
        format_bar(0.0, 2.0, 4)
        == format_bar(-1.0, 2.0, 4)
        == format_bar(math.nan, 2.0, 4)
        == format_bar(1.0, 0.0, 4)
        == ""
    )
    assert format_bar(0.9, 2.0, 4) == "█▊"
