"""Declaration of one setting: its default, its parser and its help text."""

import dataclasses
from collections.abc import Callable
from typing import Any


def declare_setting(
    default: Any,
    parse: Callable[[str], Any],
    text: str,
    metavar: str = "",
    *,
    each: str = "",
    secret: bool = False,
) -> Any:
    """Return the field of a settings class for one setting.

    Args:
        default: value without a flag and an environment variable.
        parse: parser of the text; raises ValueError that says what is expected.
        text: help text.
        metavar: placeholder of the value in the help text; "" for a switch or a choice.
        each: flag for one value of a setting that holds a tuple of them: the flag may be repeated,
            and commas separate the values in the environment variable. "" for other settings.
        secret: whether the value may hold a password, so that no message repeats it.
    """
    metadata = {"parse": parse, "help": text, "metavar": metavar, "each": each, "secret": secret}
    return dataclasses.field(default=default, metadata=metadata)
