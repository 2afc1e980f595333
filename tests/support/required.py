"""Tools that some tests need, and whether a test may do without them."""

import os
from typing import NoReturn

import pytest

REQUIRED = "TESTS_REQUIRE"
"""Names of tools, parted by commas, that are said to be installed: `.ci/run` sets it.

No name with WHENCE_ at its start: a server takes those for settings of its own.
"""


def skip_without(tool: str, reason: str) -> NoReturn:
    """Skips the test, or fails it where the tool is required."""
    if tool in os.environ.get(REQUIRED, "").split(","):
        pytest.fail(f"{REQUIRED} names {tool}, and {reason}")
    pytest.skip(reason)
