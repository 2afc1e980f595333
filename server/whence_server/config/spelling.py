"""Flags, environment variables and parsers of settings.

Each parser returns the value of a text, or raises a ValueError that says what is expected.
"""

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from whence_server.domain.addresses import parse_host_port
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.limits import Limits

LEAST_STALL_S = 5.0
MAX_GRACE_S = Limits().max_disconnect_grace_s
LEAST_PROGRESS_S = 0.1
_TRACE_ID = "{trace_id}"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def spell_flag(field: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + field.replace("_", "-")


def spell_variable(field: str) -> str:
    """Return the environment variable of a setting."""
    return "WHENCE_" + field.upper()


def require_utf8(source: str, text: str) -> None:
    """Refuse text with bytes that are not UTF-8, which Python decodes as lone surrogates.

    Raises:
        ConfigurationError: the text has other bytes than UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        raise ConfigurationError(
            f"{source}: byte {error.start + 1} (0x{byte:02X}) is not UTF-8; expected UTF-8"
        ) from None


def accept_whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds."""

    def parse(text: str) -> int:
        value = int(text) if re.fullmatch(r"-?[0-9]+", text) else None
        if value is None or value < low or (high is not None and value > high):
            most = f" to {high}" if high is not None else " on"
            raise ValueError(f"expected a whole number from {low}{most}")
        return value

    return parse


def parse_permissions(text: str) -> int:
    """Parse a file's mode in octal, with read and write permission for its owner."""
    if not re.fullmatch(r"0?[67][0-7][0-7]", text):
        raise ValueError("expected permissions in octal, from 600 to 777")
    return int(text, 8)


def parse_seconds(text: str) -> float:
    """Parse seconds, from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise ValueError("expected seconds, a number from 0 on")
    return value


def parse_probability(text: str) -> float:
    """Parse a probability, from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError("expected a probability, a number from 0 to 1")
    return value


def parse_stall_seconds(text: str) -> float:
    """Parse seconds, from 5 on (a heartbeat comes every second), or 0 for never."""
    return _parse_seconds_from(LEAST_STALL_S, text)


def parse_progress_seconds(text: str) -> float:
    """Parse seconds, from 0.1 on, or 0 for never."""
    return _parse_seconds_from(LEAST_PROGRESS_S, text)


def _parse_seconds_from(least: float, text: str) -> float:
    value = parse_seconds(text)
    if 0 < value < least:
        raise ValueError(f"expected seconds, from {least:g} on, or 0")
    return value


def parse_grace_seconds(text: str) -> float:
    """Parse seconds, from 0 to the longest grace of a request."""
    value = parse_seconds(text)
    if value > MAX_GRACE_S:
        raise ValueError(f"expected seconds, from 0 to {MAX_GRACE_S}")
    return value


def accept_choice(*values: str) -> Callable[[str], str]:
    """Return a parser that accepts one of the values."""

    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"expected one of {', '.join(values)}")
        return text

    return parse


def parse_switch(text: str) -> bool:
    """Parse true or false, in the usual words; "" is false."""
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("expected true or false")


def parse_addresses(text: str) -> tuple[str, ...]:
    """Parse at least one address, separated by commas; their form is not checked."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise ValueError("expected at least one address")
    return found


def parse_text(text: str) -> str:
    """Parse a text that is not empty."""
    if not text:
        raise ValueError("must not be empty")
    return text


def parse_path(text: str) -> Path:
    """Parse a path, which need not exist."""
    return Path(parse_text(text))


def parse_directories(text: str) -> tuple[Path, ...]:
    """Parse any number of existing directories, separated by commas."""
    found = tuple(Path(part.strip()) for part in text.split(",") if part.strip())
    for path in found:
        if not path.is_dir():
            raise ValueError(
                f"{path} is not a directory; expected directories, separated by commas"
            )
    return found


def parse_adapter(text: str) -> tuple[str, Path]:
    """Parse NAME=DIR, the name and the existing directory of an adapter."""
    name, _, directory = text.partition("=")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) or not directory:
        raise ValueError(
            "expected NAME=DIR, with a NAME of at most 64 letters, digits, '.', '_' and '-'"
        )
    path = Path(directory).expanduser()
    if not path.is_dir():
        raise ValueError(f"{directory} is not a directory; expected that of a PEFT adapter")
    return name, path


def parse_device(text: str) -> str:
    """Parse the name of a torch device."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?|mps", text):
        raise ValueError("expected cpu, cuda, cuda:N or mps")
    return text


def parse_host_and_port(text: str) -> str:
    """Check that the text is HOST:PORT or empty; return it."""
    if text:
        parse_host_port(text)
    return text


def parse_origin(text: str) -> str:
    """Parse the origin of web pages; return it as browsers send it."""
    if not re.fullmatch(r"https?://([\w.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?", text, re.ASCII):
        raise ValueError(
            "expected an origin, such as https://app.example or http://localhost:3000, without a "
            "path"
        )
    scheme, _, place = text.lower().partition("://")
    return f"{scheme}://{place.removesuffix(_DEFAULT_PORTS[scheme])}"


def parse_trace_url(text: str) -> str:
    """Parse the URL of a trace, with the place of its id."""
    url = urlsplit(text.replace(_TRACE_ID, "0" * 32))
    if (
        url.scheme not in {"http", "https"}
        or not url.hostname
        or _TRACE_ID not in text
        or not text.isprintable()
        or " " in text
    ):
        raise ValueError(
            f"expected http://HOST/... or https://HOST/... with {_TRACE_ID} in it, such as "
            f"http://localhost:16686/trace/{_TRACE_ID}"
        )
    return text


def parse_step_spans(text: str) -> int | None:
    """Parse a number, "off" (0) or "all" (None)."""
    if text == "all":
        return None
    if text == "off":
        return 0
    try:
        return accept_whole(0)(text)
    except ValueError:
        raise ValueError("expected all, off or a whole number from 0 on") from None


def parse_exporter(text: str) -> str:
    """Parse an exporter: a name, MODULE:CALLABLE, or ""."""
    if text and not re.fullmatch(r"[\w.-]+|[\w.]+:[\w.]+", text):
        raise ValueError(
            "expected otlp, none, the name of one installed exporter, or MODULE:CALLABLE"
        )
    return text


def parse_standard_boolean(text: str) -> bool:
    """Parse OpenTelemetry's booleans, whose specification forbids "1" and "yes"."""
    if text.lower() not in ("true", "false"):
        raise ValueError("expected true or false")
    return text.lower() == "true"


def parse_readable_file(text: str) -> Path:
    """Parse the path of a readable regular file; a pipe would block."""
    try:
        if Path(text).exists() and not Path(text).is_file():
            raise ValueError("it is not a regular file; expected the path of a PEM file")
        with Path(text).open("rb"):
            return Path(text)
    except OSError as error:
        raise ValueError(
            f"cannot be read ({error.strerror}); expected the path of a PEM file"
        ) from None
