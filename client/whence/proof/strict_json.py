"""Strict reading of JSON: bounded, without repeated names, unknown fields or wrong types."""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from whence.proof.faults import FormatError

T = TypeVar("T")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_object(data: bytes, what: str, max_bytes: int) -> dict[str, Any]:
    """Parse the JSON of one object.

    Args:
        data: JSON in UTF-8.
        what: name of the object for errors.
        max_bytes: limit of its size, which is checked first.

    Raises:
        FormatError: it is too large, no JSON, or no object, or it repeats a name.
    """
    if len(data) > max_bytes:
        raise FormatError(f"{what} has {len(data):,} bytes; at most {max_bytes:,} are allowed")
    try:
        found = json.loads(
            data.decode(),
            object_pairs_hook=_make_object,
            parse_constant=_refuse,
            parse_float=_refuse_float,
        )
        if _SURROGATE.search(data):
            # A lone surrogate is no text: encoding it later would fail.
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is no valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise FormatError(f"{what} is no JSON object")
    return found


class Fields:
    """Fields of one JSON object; each is taken once, with its type.

    Args:
        found: the object.
        where: path of the object for errors.
    """

    def __init__(self, found: Any, where: str) -> None:
        if not isinstance(found, dict):
            raise FormatError(f"{where} is no JSON object")
        self._left = dict(found)
        self._where = where

    def take(self, name: str, kind: type[T]) -> T:
        """Take a field that has to be there.

        Raises:
            FormatError: it is missing, or of another type.
        """
        if name not in self._left:
            raise FormatError(f"{self._where}.{name} is missing")
        value = self._left.pop(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise FormatError(f"{self._where}.{name} is no {kind.__name__}")
        return value

    def take_or(self, name: str, kind: type[T], default: T) -> T:
        """Take a field that may be missing. Raises as `take`."""
        return self.take(name, kind) if name in self._left else default

    def take_bytes(self, name: str, length: int | None = None) -> bytes:
        """Take a field with base64.

        Raises:
            FormatError: it is missing, no base64 in its one spelling, or of another length.
        """
        data = decode_base64(self.take(name, str), f"{self._where}.{name}")
        if length is not None and len(data) != length:
            raise FormatError(f"{self._where}.{name} has {len(data)} bytes, expected {length}")
        return data

    def take_hex(self, name: str, length: int) -> bytes:
        """Take a field with lower-case hex digits of a number of bytes. Raises as `take_bytes`."""
        return decode_hex(self.take(name, str), length, f"{self._where}.{name}")

    def end(self) -> None:
        """Check that every field was taken.

        Raises:
            FormatError: there are others.
        """
        if self._left:
            raise FormatError(f"{self._where} has the unknown field {next(iter(self._left))!r}")


def decode_base64(text: str, where: str) -> bytes:
    """Return the bytes of standard base64 with padding; each value has one spelling.

    Raises:
        FormatError: the text is something else.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"{where} is no base64") from None
    if base64.b64encode(data).decode() != text:
        raise FormatError(f"{where} is base64 in an unusual spelling")
    return data


def decode_hex(text: str, length: int, where: str) -> bytes:
    """Return the bytes of lower-case hex digits.

    Raises:
        FormatError: the text is something else, or of another length.
    """
    try:
        data = bytes.fromhex(text)
    except ValueError:
        data = b""
    if data.hex() != text or len(data) != length:
        raise FormatError(f"{where} is not {2 * length} lower-case hex digits")
    return data


def _make_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object repeats a name")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _refuse_float(text: str) -> float:
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise ValueError(f"the number {text[:40]} is too large")
    return value
