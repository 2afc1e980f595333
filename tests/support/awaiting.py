"""Waiting, in threads, for conditions that no event announces."""

import time
from collections.abc import Callable

LONGEST_S = 120.0


def await_that(condition: Callable[[], bool], what: str, longest_s: float = LONGEST_S) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it does not hold in time; the message names what was awaited.
    """
    give_up = time.monotonic() + longest_s
    while not condition():
        assert time.monotonic() < give_up, f"{what}: not within {longest_s:g} s"
        time.sleep(0.01)
