"""Strict parsing of a chat template's arguments, a JSON object.

The template gets the values of `json.loads`: integers stay integers, and an object's keys keep
their order. JSON that is ambiguous, or that no template needs, is refused.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.text.unicode import LoneSurrogateError, check_unicode

FIELD = "chat.template_arguments_json"
MAX_DEPTH = 64
"""Maximum nesting depth of objects and arrays, the outermost included."""

# An unterminated string matches up to the text's end, so that no part is scanned twice.
MAX_DIGITS = 1_000
"""Maximum number of digits of an integer; parsing takes quadratic time."""

_MARKS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]|NaN|-?Infinity', re.DOTALL)

_TOKENIZING = "is about tokenizing, which the server does itself"
REFUSED: Mapping[str, str] = {
    "self": "is no variable of a chat template",
    "conversation": "is `chat.messages`",
    "conversations": "is `chat.messages`",
    "messages": "is `chat.messages`",
    "chat_template": "is the model's own; `chat.template_name` chooses one of several",
    "tokenize": _TOKENIZING,
    "sanitize_control_tokens": _TOKENIZING,
    "padding": _TOKENIZING,
    "truncation": f"{_TOKENIZING}: a prompt that is too long is refused, never cut",
    "max_length": f"{_TOKENIZING}: a prompt that is too long is refused, never cut",
    "return_tensors": _TOKENIZING,
    "return_dict": _TOKENIZING,
    "return_assistant_tokens_mask": "asks for a mask, which a generation has no use for",
    "tokenizer_kwargs": _TOKENIZING,
}
"""Parameters of transformers' `apply_chat_template` that are refused, with the reason."""


def read_arguments(text: str) -> dict[str, Any]:
    """Parse the arguments from JSON; "" has none.

    Raises:
        InvalidRequestError: it is not a JSON object, is nested too deeply, repeats a key, has a
            number that is not finite, or has a name in `REFUSED`.
    """
    if not text:
        return {}
    _check_nesting(text)
    try:
        arguments = json.loads(
            text,
            object_pairs_hook=_read_object,
            parse_int=_read_int,
            parse_float=_read_float,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")
        raise _make_invalid(f"is no JSON: {reason} at character {error.pos}") from None
    except _RefusedError as error:
        raise _make_invalid(str(error), error.recorded) from None
    if not isinstance(arguments, dict):
        raise _make_invalid(f"must be a JSON object, not {_name_kind(arguments)}")
    _check_text(arguments)
    check_names(arguments)
    return arguments


def check_names(arguments: Mapping[str, Any]) -> None:
    """Refuse names in `REFUSED`, and `tools` and `documents` that are not lists of objects.

    Raises:
        InvalidRequestError: arguments break rules; the error names all of them.
    """
    faults = [
        FieldViolation("chat.template_arguments", f"has `{name}`, which {REFUSED[name]}")
        for name in arguments
        if name in REFUSED
    ]
    for name in ("tools", "documents"):
        value = arguments.get(name)
        is_list = isinstance(value, list | tuple) and all(isinstance(v, dict) for v in value)
        if value is not None and not is_list:
            description = f"`{name}` must be an array of objects, or null"
            faults.append(FieldViolation(f"chat.template_arguments.{name}", description))
    if faults:
        raise InvalidRequestError(*faults)


def _check_nesting(text: str) -> None:
    """Refuse brackets that are nested too deeply, and NaN and Infinity."""
    depth = 0
    for mark in _MARKS.finditer(text):
        match mark[0][0]:
            case "[" | "{":
                depth += 1
                if depth > MAX_DEPTH:
                    raise _make_invalid(
                        f"nests deeper than {MAX_DEPTH} levels at character {mark.start()}"
                    )
            case "]" | "}":
                depth -= 1
            case "N" | "I" | "-":
                raise _make_invalid(
                    f"has {mark[0]} at character {mark.start()}, which is no number in JSON"
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


def _check_text(value: Any) -> None:
    """Refuse lone surrogates, which an escape can spell: a prompt cannot hold them."""
    if isinstance(value, str):
        try:
            check_unicode(value)
        except LoneSurrogateError as error:
            raise _make_invalid(f"{value[:64]!r} {error}", f"a text {error}") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_text(item)
    elif isinstance(value, list):
        for item in value:
            _check_text(item)


def _name_kind(value: Any) -> str:
    kinds = {str: "a string", list: "an array", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


class _RefusedError(ValueError):
    """Error of a value that is refused while the JSON is read.

    Attributes:
        recorded: description for the record, if the error's own quotes the arguments.
    """

    def __init__(self, description: str, recorded: str | None = None) -> None:
        super().__init__(description)
        self.recorded = recorded


def _make_invalid(description: str, recorded: str | None = None) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(FIELD, description, recorded))
