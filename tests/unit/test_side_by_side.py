"""Words and marks of a branch beside its parent."""

from types import SimpleNamespace
from typing import Any

import pytest

from whence.cli.side_by_side import Comparison


def make_tokens(*ids: int) -> list[Any]:
    return [SimpleNamespace(index=index, token_id=token_id) for index, token_id in enumerate(ids)]


@pytest.mark.parametrize(
    ("parent", "is_running", "branch", "is_cut_off", "marks", "words"),
    [
        ((1, 2, 3), False, (1, 2, 3), False, "   ", "it is equal to its parent"),
        ((1, 2, 3), False, (1, 9, 3), False, " | ", "at step 1, and 1 of the 1 token after"),
        ((1, 2, 3), False, (1, 2), False, "  ", "it parts from its parent at step 2"),
        ((1, 2, 3), False, (1, 2), True, "  ", "as far as it goes (2 tokens)"),
        ((1, 2, 3), False, (1, 9), True, " |", "it parts from its parent at step 1"),
        ((1, 2), False, (1, 2, 3), False, "  >", "it parts from its parent at step 2"),
        ((1, 2), True, (1, 2, 3), False, "  ?", "as far as that had come (2 tokens)"),
        ((1, 2), True, (1, 2), False, "  ", "as far as that had come (2 tokens)"),
        ((1, 2, 3), True, (9, 2, 3, 4), False, "|  ?", "and 2 of the 2 tokens after that"),
    ],
)
def test_comparison_says_no_more_than_it_knows(
    parent: tuple[int, ...],
    is_running: bool,
    branch: tuple[int, ...],
    is_cut_off: bool,
    marks: str,
    words: str,
) -> None:
    comparison = Comparison(make_tokens(*parent), is_running=is_running)
    assert "".join(map(comparison.take, make_tokens(*branch))) == marks
    assert words in comparison.describe(is_cut_off=is_cut_off)
