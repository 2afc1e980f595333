"""Values of an upstream's JSON documents, each checked where it is read.

`path` names the place in an error, such as "choices[0].text".
"""

import math
from typing import Any

import orjson

from whence_server.domain.errors import UpstreamMalformedError

MAX_QUOTED_CHARACTERS = 300
"""Most characters of an upstream's own text in an error."""
MAX_LOGPROB = 1e-3
"""Largest logprob that rounding explains."""


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        UpstreamMalformedError: the bytes are something else.
    """
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise UpstreamMalformedError(
            f"the upstream's {where} is not JSON ({error}): {quote(data)}"
        ) from None
    if not isinstance(document, dict):
        raise UpstreamMalformedError(
            f"the upstream's {where} must be a JSON object, not {quote(data)}"
        )
    return document


def quote(text: bytes | str) -> str:
    """Return the beginning of an upstream's text, without characters that break a line."""
    if isinstance(text, bytes):
        text = text[: 4 * MAX_QUOTED_CHARACTERS].decode("utf-8", "replace")
    shown = "".join(c if c.isprintable() else " " for c in text[:MAX_QUOTED_CHARACTERS])
    return shown + ("..." if len(text) > MAX_QUOTED_CHARACTERS else "")


def _fail(path: str, wanted: str, value: object) -> UpstreamMalformedError:
    return UpstreamMalformedError(
        f"`{path}` of the upstream's answer must be {wanted}, not {quote(repr(value)[:80])}"
    )


def get_object(document: dict[str, Any], key: str, path: str) -> dict[str, Any]:
    """Return an object; {} if it is absent or null."""
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _fail(f"{path}{key}", "an object", value)
    return value


def get_list(document: dict[str, Any], key: str, path: str) -> list[Any]:
    """Return a list; [] if it is absent or null."""
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _fail(f"{path}{key}", "a list", value)
    return value


def get_objects(document: dict[str, Any], key: str, path: str) -> list[dict[str, Any]]:
    """Return a list of objects; [] if it is absent or null."""
    values = get_list(document, key, path)
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            raise _fail(f"{path}{key}[{number}]", "an object", value)
    return values


def get_text(document: dict[str, Any], key: str, path: str) -> str:
    """Return a text; "" if it is absent or null."""
    value = document.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _fail(f"{path}{key}", "a text", value)
    return value


def get_count(document: dict[str, Any], key: str, path: str) -> int | None:
    """Return a whole number from 0 on; None if it is absent or null."""
    value = document.get(key)
    return None if value is None else check_count(value, f"{path}{key}")


def check_count(value: object, path: str) -> int:
    """Return a value that must be a whole number from 0 to 2^63 - 1."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise _fail(path, "a whole number that is not negative", value)
    return value


def get_token_ids(document: dict[str, Any], key: str, path: str) -> tuple[int, ...] | None:
    """Return token ids; None if they are absent or null."""
    if document.get(key) is None:
        return None
    values = get_list(document, key, path)
    return tuple(check_token_id(value, f"{path}{key}") for value in values)


def check_token_id(value: object, path: str) -> int:
    """Return a value that must be a token id."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise _fail(path, "a token id", value)
    return value


def check_logprob(value: object, path: str, floor: float) -> float | None:
    """Return a logprob; None if it is null, or at or below the floor that stands for "less than".

    Raises:
        UpstreamMalformedError: it is no number, or larger than 0.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise _fail(path, "a logprob", value)
    if value > MAX_LOGPROB:
        raise _fail(path, "a logprob, which is not above 0", value)
    if value <= floor:
        return None
    return min(float(value), 0.0)


def get_bytes(document: dict[str, Any], key: str, path: str) -> bytes | None:
    """Return bytes that are given as a list of numbers; None if they are absent or null."""
    if document.get(key) is None:
        return None
    values = get_list(document, key, path)
    try:
        return bytes(values)
    except (TypeError, ValueError):
        raise _fail(f"{path}{key}", "a list of bytes", values) from None
