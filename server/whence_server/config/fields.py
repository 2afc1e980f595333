"""Declaration of one setting: its default, its parser and its help text."""

import dataclasses
from collections.abc import Callable
from typing import Any

REQUIRED: Any = dataclasses.MISSING
"""The default of a setting that has none."""


def setting(default: Any, parse: Callable[[str], Any], text: str, metavar: str = "") -> Any:
    """Return the field of a settings class for one setting.

    Args:
        default: the value where neither flag nor environment variable gives one, or `REQUIRED`.
        parse: reads the text of a flag or variable; raises ValueError that says what is expected.
        text: the help text.
        metavar: the value's placeholder in the help text; "" for a switch or a choice.
    """
    metadata = {"parse": parse, "help": text, "metavar": metavar}
    if default is REQUIRED:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
