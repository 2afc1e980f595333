"""How a setting is spelt: its flag, its environment variable, and its value as text.

Each parser takes the text and gives the value; what it cannot read is a ValueError that says what
would be right.
"""

import re
from collections.abc import Callable
from pathlib import Path

from whence_server.domain.addresses import parse_host_port
from whence_server.domain.errors import ConfigurationError

LEAST_STALL_S = 5.0


def flag_of(field: str) -> str:
    """The command-line flag of a setting."""
    return "--" + field.replace("_", "-")


def variable_of(field: str) -> str:
    """The environment variable of a setting."""
    return "WHENCE_" + field.upper()


def require_utf8(source: str, text: str) -> None:
    """Refuse a text with bytes that are not UTF-8, which Python keeps as lone surrogates.

    Raises:
        ConfigurationError: it has some.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        raise ConfigurationError(
            f"{source}: byte {error.start + 1} (0x{byte:02X}) is not UTF-8; expected UTF-8"
        ) from None


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch(r"-?[0-9]+", text) else None
        if value is None or value < low or (high is not None and value > high):
            most = f" to {high}" if high is not None else " on"
            raise ValueError(f"expected a whole number from {low}{most}")
        return value

    return parse


def permissions(text: str) -> int:
    """Read a file's mode in octal, which lets its owner read and write."""
    if not re.fullmatch(r"0?[67][0-7][0-7]", text):
        raise ValueError("expected permissions in octal, from 600 to 777")
    return int(text, 8)


def seconds(text: str) -> float:
    """Seconds, from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise ValueError("expected seconds, a number from 0 on")
    return value


def stall_seconds(text: str) -> float:
    """Read seconds, from 5 on: a heart beats once a second; or 0 for never."""
    value = seconds(text)
    if 0 < value < LEAST_STALL_S:
        raise ValueError(f"expected seconds, from {LEAST_STALL_S:g} on, or 0")
    return value


def choice(*values: str) -> Callable[[str], str]:
    """A parser that takes one of the values."""

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"expected one of {', '.join(values)}")
        return text

    return parse


def switch(text: str) -> bool:
    """True or false, in the usual words; empty is false."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("expected true or false")


def addresses(text: str) -> tuple[str, ...]:
    """At least one, separated by commas; what each means is for who listens."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise ValueError("expected at least one address")
    return found


def text_of(text: str) -> str:
    """Any text but none."""
    if not text:
        raise ValueError("must not be empty")
    return text


def path_of(text: str) -> Path:
    """A path, whether or not anything is there."""
    return Path(text_of(text))


def directories(text: str) -> tuple[Path, ...]:
    """Any number of directories that are there, separated by commas."""
    found = tuple(Path(part.strip()) for part in text.split(",") if part.strip())
    for path in found:
        if not path.is_dir():
            raise ValueError(
                f"{path} is not a directory; expected directories, separated by commas"
            )
    return found


def device_of(text: str) -> str:
    """One of torch's devices, as torch spells it."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?|mps", text):
        raise ValueError("expected cpu, cuda, cuda:N or mps")
    return text


def host_and_port(text: str) -> str:
    """Return the text if it is an address, or empty."""
    if text:
        parse_host_port(text)
    return text


def step_spans(text: str) -> int | None:
    """How many; None for all."""
    if text == "all":
        return None
    if text == "off":
        return 0
    try:
        return whole(0)(text)
    except ValueError:
        raise ValueError("expected all, off or a whole number from 0 on") from None


def exporter(text: str) -> str:
    """Who sends a signal: a name, MODULE:CALLABLE, or nothing."""
    if text and not re.fullmatch(r"[\w.-]+|[\w.]+:[\w.]+", text):
        raise ValueError(
            "expected otlp, none, the name of one installed exporter, or MODULE:CALLABLE"
        )
    return text


def standard_boolean(text: str) -> bool:
    """OpenTelemetry's own booleans: it forbids to take "1" or "yes" for true."""
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def readable_file(text: str) -> Path:
    """A file that can be read now, and again later: no pipe, which would be waited for."""
    try:
        if Path(text).exists() and not Path(text).is_file():
            raise ValueError("it is no regular file; expected the path of a PEM file")
        with Path(text).open("rb"):
            return Path(text)
    except OSError as error:
        raise ValueError(
            f"cannot be read ({error.strerror}); expected the path of a PEM file"
        ) from None
