"""Own regular expressions, read from a file."""

import re
import tomllib
from collections.abc import Collection
from pathlib import Path

import re2

from whence_server.domain.errors import ConfigurationError
from whence_server.redaction.detectors import MAX_MATCH_BYTES, Detector, accept
from whence_server.redaction.syntax import UnboundedError, measure_longest, measure_shortest, parse

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_MAX_PATTERNS = 64
_MAX_FILE_BYTES = 1 << 20


def read_patterns(path: Path, taken: Collection[str]) -> list[Detector]:
    """Read a TOML file whose table `patterns` has a name and a regular expression in each line.

    Args:
        path: the file.
        taken: names that patterns must not have.

    Raises:
        ConfigurationError: the file cannot be read, or a pattern cannot be searched.
    """
    try:
        content = path.read_bytes()
        if len(content) > _MAX_FILE_BYTES:
            raise ConfigurationError(f"{path}: has more than {_MAX_FILE_BYTES} bytes")
        read = tomllib.loads(content.decode())
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigurationError(f"{path}: is no TOML file ({error})") from None
    patterns = read.pop("patterns", None)
    if read or not isinstance(patterns, dict) or not 0 < len(patterns) <= _MAX_PATTERNS:
        raise ConfigurationError(
            f"{path}: must have one table [patterns], with 1 to {_MAX_PATTERNS} lines of the form "
            "name = 'regular expression'"
        )
    return [_make_detector(f"{path}: {name!r}", name, patterns[name], taken) for name in patterns]


def _make_detector(where: str, name: str, source: object, taken: Collection[str]) -> Detector:
    if not _NAME.fullmatch(name) or name in taken:
        raise ConfigurationError(
            f"{where}: the name must begin with a letter from a to z, have at most 32 letters, "
            f"digits, hyphens and underscores, and be none of {', '.join(taken)}"
        )
    if not isinstance(source, str):
        raise ConfigurationError(f"{where}: must be a text between quotation marks")
    try:
        check_pattern(source)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {error}") from None
    return Detector(name, source, accept)


def check_pattern(source: str) -> None:
    """Check that a regular expression can be searched in a text as it grows.

    Raises:
        ValueError: RE2 does not accept it, its matches have no bound, or one of them is empty. The
            message names the place of the fault.
    """
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(source.encode(), options)
    except re2.error as error:
        raise ValueError(_describe(source, error)) from None
    try:
        node = parse(source)
    except UnboundedError as error:
        raise ValueError(str(error)) from None
    if measure_shortest(node) == 0:
        raise ValueError("matches the empty text: make a part of it necessary")
    longest = measure_longest(node)
    if longest > MAX_MATCH_BYTES:
        raise ValueError(
            f"has matches of up to {longest} bytes; the longest may have {MAX_MATCH_BYTES}"
        )


def _describe(source: str, error: Exception) -> str:
    """Return the fault that RE2 found, with the place of the part that it quotes."""
    told = error.args[0].decode(errors="replace") if error.args else str(error)
    fault, _, part = told.partition(": ")
    place = source.find(part) if part else -1
    where = f" at character {place + 1} ({part!r})" if place >= 0 else ""
    return f"is no regular expression of RE2: {fault}{where}"
