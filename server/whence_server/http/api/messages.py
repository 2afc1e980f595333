"""Requests of the contract, made of a path, a query and a body; answers in JSON.

The form is protobuf's JSON mapping (https://protobuf.dev/programming-guides/json): names in
lowerCamelCase, 64-bit numbers as strings, bytes in base64, times in RFC 3339.
"""

import asyncio
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.http.api.json_form import write_message
from whence_server.rpc.wire_counts import check_wire

_FILTER = "filter"
INLINE_BYTES = 16 << 10
"""Size up to which a message is converted in the event loop: that takes a few milliseconds."""
_BOOLEANS = {"true": True, "false": False}
_JSON_WHOLE = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration"})
"""Messages that are one value in JSON."""

M = TypeVar("M", bound=Message)


class Parameter(NamedTuple):
    """Place of a query parameter's value in the request."""

    path: tuple[str, ...]
    field: FieldDescriptor


@cache
def list_parameters(request: Descriptor) -> Mapping[str, Parameter]:
    """Return the query parameters of a request by their names, in both spellings.

    They are its fields, and those of its filter. Messages are no parameters, but for times.
    """
    found: dict[str, Parameter] = {}
    for field in request.fields:
        kind = field.message_type
        if field.name == _FILTER and kind is not None:
            for part in kind.fields:
                _add(found, Parameter((_FILTER, part.name), part))
        else:
            _add(found, Parameter((field.name,), field))
    return found


def _add(found: dict[str, Parameter], parameter: Parameter) -> None:
    field = parameter.field
    kind = field.message_type
    if kind is None or _is_map(field) or kind.full_name in _JSON_WHOLE:
        found[field.name] = found[field.json_name] = parameter


def parse_query(
    request_type: type[M], path: Mapping[str, str], query: Iterable[tuple[str, str]]
) -> M:
    """Return the request that a path and a query ask for.

    Raises:
        InvalidRequestError: a parameter is unknown, or has a value of another kind.
    """
    document: dict[str, Any] = dict(path)
    known = list_parameters(request_type.DESCRIPTOR)
    for name, value in query:
        parameter = known.get(name)
        if parameter is None or parameter.path[0] in path:
            names = sorted({it.field.name for it in known.values()} - path.keys())
            raise InvalidRequestError(
                FieldViolation(name[:64], f"is no parameter of this route: {', '.join(names)}")
            )
        _put(document, parameter, value)
    return _parse(document, request_type)


def _put(document: dict[str, Any], parameter: Parameter, value: str) -> None:
    *parents, last = parameter.path
    for parent in parents:
        document = document.setdefault(parent, {})
    field = parameter.field
    if _is_map(field):
        key, equals, content = value.partition("=")
        if not equals:
            raise InvalidRequestError(FieldViolation(field.name, "must be KEY=VALUE"))
        document.setdefault(last, {})[key] = content
    elif field.is_repeated:
        document.setdefault(last, []).append(_read_value(field, value))
    else:
        document[last] = _read_value(field, value)


def _read_value(field: FieldDescriptor, value: str) -> object:
    if field.type != FieldDescriptor.TYPE_BOOL:
        return value
    if value not in _BOOLEANS:
        raise InvalidRequestError(FieldViolation(field.name, "must be true or false"))
    return _BOOLEANS[value]


def _is_map(field: FieldDescriptor) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


async def parse_body(
    request_type: type[M], path: Mapping[str, Any], body: Mapping[str, Any], num_bytes: int
) -> M:
    """Return the request that a path and a JSON object ask for.

    Raises:
        InvalidRequestError: a field is unknown, or has a value of another kind.
    """
    document = {**body, **path}
    if num_bytes <= INLINE_BYTES:
        return _parse(document, request_type)
    return await asyncio.to_thread(_parse, document, request_type)


def _parse(document: dict[str, Any], request_type: type[M]) -> M:
    try:
        message = json_format.ParseDict(document, request_type(), max_recursion_depth=64)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        told = f"not a {request_type.DESCRIPTOR.full_name} in JSON"
        # The reason may quote a value.
        raise InvalidRequestError(FieldViolation("", f"{told}: {error}", told)) from None
    descriptor: Any = request_type.DESCRIPTOR
    check_wire(message.SerializeToString(), descriptor)
    return message


def get_message_type(descriptor: Descriptor) -> type[Message]:
    """Return the class of a message by its descriptor."""
    return GetMessageClass(descriptor)


async def make_json(message_type: type[Message], raw: bytes) -> bytes:
    """Return a serialised message as JSON; large ones are converted in a thread."""
    if len(raw) <= INLINE_BYTES:
        return write_json(message_type, raw)
    return await asyncio.to_thread(write_json, message_type, raw)


def write_json(message_type: type[Message], raw: bytes) -> bytes:
    """Return a serialised message as JSON on one line; unset fields are left out."""
    return write_message(message_type.FromString(raw))
