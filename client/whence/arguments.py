"""Conversion of single arguments to protobuf; unrepresentable ones are refused by name."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from google.protobuf.duration_pb2 import Duration

from whence.v1 import generation_pb2 as pb


@contextmanager
def name_errors(option: str) -> Iterator[None]:
    """Add the option's name to errors raised inside."""
    try:
        yield
    except TypeError as error:
        raise TypeError(f"{option}: {error}") from None
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{option}: {error}") from None


def require_text(where: str, value: object) -> str:
    """Return the value; raise if it is not text that UTF-8 can encode."""
    if not isinstance(value, str):
        raise TypeError(f"{where} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: character {error.start} is the lone surrogate "
            f"{value[error.start]!r}, which UTF-8 cannot carry"
        ) from None
    return value


def require_texts(option: str, value: Any) -> list[str]:
    """Return the texts of an option that takes one or several."""
    if isinstance(value, str):
        return [require_text(option, value)]
    with name_errors(option):
        items = list(value)
    return [require_text(f"{option}[{index}]", item) for index, item in enumerate(items)]


def convert_token_ids(option: str, token_ids: Any) -> pb.TokenInput:
    """Return token ids as a message."""
    if isinstance(token_ids, bytes | bytearray):
        raise TypeError(f"{option} must be text or token ids, not bytes: decode them")
    with name_errors(option):
        return pb.TokenInput(token_ids=token_ids)


def require_mapping(option: str, value: Any) -> Mapping[Any, Any]:
    """Return the value; raise if it is not a mapping."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{option} must be a mapping, not {type(value).__name__}")
    return value


def encode_json(option: str, value: object, separators: tuple[str, str] = (",", ":")) -> str:
    """Return the value as JSON, with keys in their order."""
    return json.dumps(_require_plain(option, value), ensure_ascii=False, separators=separators)


def _require_plain(where: str, value: object) -> Any:
    """Return the value in JSON's types; raise for others, which `json` would partly convert."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which is not a JSON number")
        return value
    if isinstance(value, str):
        return require_text(where, value)
    if isinstance(value, Mapping):
        return {
            require_text(f"{where}: a key", k): _require_plain(f"{where}[{k!r}]", v)
            for k, v in value.items()
        }
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_require_plain(f"{where}[{index}]", item) for index, item in enumerate(value)]
    raise TypeError(f"{where} is of type {type(value).__name__}, which JSON does not have")


def find_choice(option: str, value: Any, choices: Mapping[str, int]) -> int:
    """Return the enum value of a name."""
    if value not in choices:
        raise ValueError(
            f"{option} is {value!r}; it must be one of {', '.join(map(repr, choices))}"
        )
    return choices[value]


def convert_seconds(option: str, seconds: Any) -> Duration:
    """Return seconds as a Duration."""
    carried = Duration()
    with name_errors(option):
        carried.FromNanoseconds(round(seconds * 1e9))
    return carried
