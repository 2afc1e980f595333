"""Messages in protobuf's JSON mapping, an order of magnitude faster than `json_format` writes them.

A generation with internals has millions of numbers, and `json_format` takes 3 us for each: it looks
for the shortest decimals of a float by trying. orjson finds those of a whole array at once. A test
parses what this module writes with `json_format`, and compares.
"""

import base64
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import orjson
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

Convert: TypeAlias = Callable[[Any], Any]

_WELL_KNOWN = "google.protobuf."
_KEYS = {True: "true", False: "false"}
_NO_NUMBER = b"null"


def write_message(message: Message) -> bytes:
    """Return a message as JSON on one line; unset fields and empty lists are left out."""
    written = orjson.dumps(_FAST.convert(message), option=orjson.OPT_SERIALIZE_NUMPY)
    if _NO_NUMBER not in written:
        return written
    # orjson writes infinite floats so; the word may also stand in a text.
    return orjson.dumps(_CHECKED.convert(message), option=orjson.OPT_SERIALIZE_NUMPY)


class _Floats(NamedTuple):
    """Conversions of numbers that may be infinite or none."""

    convert_list: Convert
    convert_float: Convert
    convert_double: Convert | None


class _Converter:
    """Conversion of messages to what orjson writes.

    Args:
        floats: conversions of floats.
    """

    def __init__(self, floats: _Floats) -> None:
        self._floats = floats
        self._fields: dict[Any, dict[int, tuple[str, Convert | None]]] = {}

    def convert(self, message: Message) -> dict[str, Any]:
        """Return the set fields of a message by their names in JSON."""
        fields = self._fields.get(message.DESCRIPTOR) or self._list_fields(message.DESCRIPTOR)
        found = {}
        for field, value in message.ListFields():
            name, convert = fields[field.number]
            found[name] = value if convert is None else convert(value)
        return found

    def _list_fields(self, descriptor: Any) -> dict[int, tuple[str, Convert | None]]:
        found = {
            field.number: (field.json_name, self._choose(field)) for field in descriptor.fields
        }
        self._fields[descriptor] = found
        return found

    def _choose(self, field: FieldDescriptor) -> Convert | None:
        """Return the conversion of a field's value; None if orjson takes it as it is."""
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            convert = self._choose_one(kind.fields_by_name["value"])
            return lambda value: _convert_map(value, convert)
        if not field.is_repeated:
            return self._choose_one(field)
        if field.type == FieldDescriptor.TYPE_FLOAT:
            return self._floats.convert_list
        one = self._choose_one(field)
        if one is None:
            return list
        return lambda values: [one(value) for value in values]

    def _choose_one(self, field: FieldDescriptor) -> Convert | None:
        """Return the conversion of one value of a field."""
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_MESSAGE:
                return json_format.MessageToDict if _is_well_known(field) else self.convert
            case FieldDescriptor.CPPTYPE_ENUM:
                return _make_enum_converter(field)
            case FieldDescriptor.CPPTYPE_INT64 | FieldDescriptor.CPPTYPE_UINT64:
                return str
            case FieldDescriptor.CPPTYPE_FLOAT:
                return self._floats.convert_float
            case FieldDescriptor.CPPTYPE_DOUBLE:
                return self._floats.convert_double
        return _encode_base64 if field.type == FieldDescriptor.TYPE_BYTES else None


def _is_well_known(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and kind.full_name.startswith(_WELL_KNOWN)


def _make_enum_converter(field: FieldDescriptor) -> Convert:
    kind: Any = field.enum_type
    names = {number: value.name for number, value in kind.values_by_number.items()}
    # A newer writer may know more of them.
    return lambda number: names.get(number, number)


def _convert_map(value: Any, convert: Convert | None) -> dict[str, Any]:
    return {
        _KEYS[key] if isinstance(key, bool) else str(key): it if convert is None else convert(it)
        for key, it in value.items()
    }


def _encode_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _convert_floats(values: Any) -> Any:
    return np.fromiter(values, np.float32, len(values))


def _check_floats(values: Any) -> Any:
    return [_check_float(value) for value in values]


def _check_float(value: float) -> Any:
    return np.float32(value) if math.isfinite(value) else _name(value)


def _check_double(value: float) -> Any:
    return value if math.isfinite(value) else _name(value)


def _name(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


_FAST = _Converter(_Floats(_convert_floats, np.float32, None))
_CHECKED = _Converter(_Floats(_check_floats, _check_float, _check_double))
