"""Tools that some tests need, without which a test is skipped or fails."""

import os
from typing import NoReturn

import pytest

REQUIRED = "TESTS_REQUIRE"
"""Environment variable with comma-separated names of required tools; `.ci/run` sets it.

It does not begin with WHENCE_, because a server would read it as a setting.
"""


def skip_without(tool: str, reason: str) -> NoReturn:
    """Skip the test, or fail it if the tool is required."""
    if tool in os.environ.get(REQUIRED, "").split(","):
        pytest.fail(f"{REQUIRED} names {tool}, and {reason}")
    pytest.skip(reason)
