"""Strict parsing of JSON that a chat template receives.

The result has the values of `json.loads`: integers stay integers, and an object's keys keep
their order. JSON that is ambiguous, or that no template needs, is refused.
"""

import json
import math
import re
from typing import Any, NoReturn

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.text.unicode import LoneSurrogateError, check_unicode

MAX_DEPTH = 64
"""Maximum nesting depth of objects and arrays, the outermost included."""

# An unterminated string matches up to the text's end, so that no part is scanned twice.
MAX_DIGITS = 1_000
"""Maximum number of digits of an integer; parsing takes quadratic time."""

_MARKS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]|NaN|-?Infinity', re.DOTALL)


def read_json(text: str, field: str) -> Any:
    """Parse JSON.

    Args:
        text: the JSON.
        field: path of the request's field that holds it, for errors.

    Raises:
        InvalidRequestError: it is not JSON, is nested too deeply, repeats a key in an object, has
            a number that is not finite, or text that is not valid Unicode.
    """
    _check_nesting(text, field)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_read_object,
            parse_int=_read_int,
            parse_float=_read_float,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")
        raise _make_invalid(field, f"is no JSON: {reason} at character {error.pos}") from None
    except _RefusedError as error:
        raise _make_invalid(field, str(error), error.recorded) from None
    _check_text(value, field)
    return value


def name_kind(value: Any) -> str:
    """Return the kind of a parsed value in words: "an array", ..."""
    kinds = {
        str: "a string",
        list: "an array",
        bool: "a boolean",
        type(None): "null",
        dict: "an object",
    }
    return kinds.get(type(value), "a number")


def _check_nesting(text: str, field: str) -> None:
    """Refuse brackets that are nested too deeply, and NaN and Infinity."""
    depth = 0
    for mark in _MARKS.finditer(text):
        match mark[0][0]:
            case "[" | "{":
                depth += 1
                if depth > MAX_DEPTH:
                    raise _make_invalid(
                        field, f"nests deeper than {MAX_DEPTH} levels at character {mark.start()}"
                    )
            case "]" | "}":
                depth -= 1
            case "N" | "I" | "-":
                raise _make_invalid(
                    field, f"has {mark[0]} at character {mark.start()}, which is no number in JSON"
                )


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError(
                    f"has the key {key[:64]!r} twice in one object",
                    "has a key twice in one object",
                )
            seen.add(key)
    return made


def _read_int(literal: str) -> int:
    if len(literal) > MAX_DIGITS:
        raise _RefusedError(
            f"has an integer of {len(literal)} digits; at most {MAX_DIGITS} are taken"
        )
    return int(literal)


def _read_float(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise _RefusedError(
            f"has the number {literal[:32]}, which is beyond a double's range",
            "has a number beyond a double's range",
        )
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise _RefusedError(f"has {name}, which is no number in JSON")


def _check_text(value: Any, field: str) -> None:
    """Refuse lone surrogates, which an escape can spell: a prompt cannot hold them."""
    if isinstance(value, str):
        try:
            check_unicode(value)
        except LoneSurrogateError as error:
            raise _make_invalid(field, f"{value[:64]!r} {error}", f"a text {error}") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key, field)
            _check_text(item, field)
    elif isinstance(value, list):
        for item in value:
            _check_text(item, field)


class _RefusedError(ValueError):
    """Error of a value that is refused while the JSON is read.

    Attributes:
        recorded: description for the record, if the error's own quotes the arguments.
    """

    def __init__(self, description: str, recorded: str | None = None) -> None:
        super().__init__(description)
        self.recorded = recorded


def _make_invalid(field: str, description: str, recorded: str | None = None) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(field, description, recorded))
