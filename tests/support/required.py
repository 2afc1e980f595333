"""Tools that some tests need, without which a test is skipped or fails."""

import os
import shutil
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


def find_program(name: str, remedy: str = "put it on the PATH", *, tool: str = "") -> str:
    """Return the path of a program, from the variable NAME_BINARY or from the PATH.

    The test is skipped without the program, or fails if the program is required.

    Args:
        name: the program's name, for example "jaeger", whose variable is JAEGER_BINARY.
        remedy: what a developer can do to have the program.
        tool: name of the program in TESTS_REQUIRE, if it is another one.
    """
    variable = f"{name.upper().replace('-', '_')}_BINARY"
    program = os.environ.get(variable) or shutil.which(name)
    if program is None:
        skip_without(
            tool or name, f"{name} is not installed: {remedy}, or set {variable} to its path"
        )
    return program
