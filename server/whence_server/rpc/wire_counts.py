"""Bounds on maps with text keys, checked in a message's bytes before it is parsed.

Parsing a large map blocks the event loop: 350,000 labels, in 4 MB, took two seconds of processor
time.
"""

from collections.abc import Iterator
from functools import cache

from google.protobuf import struct_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.domain.limits import Limits
from whence_server.domain.varint import decode_varint

SMALL_BYTES = 64 << 10
"""Size up to which a message is parsed without this check, in bytes."""
MAX_FIELDS = 10_000
"""Maximum number of fields in a larger message and its parts that hold maps."""
MAX_STRUCT_BYTES = Limits().max_template_arguments_bytes

_STRUCT = struct_pb2.Struct.DESCRIPTOR.full_name
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_GROUP_BEGIN, _GROUP_END = 3, 4
_SIZES = {_FIXED64: 8, _FIXED32: 4, _GROUP_BEGIN: 0, _GROUP_END: 0}


def check_wire(raw: bytes, descriptor: Descriptor) -> None:
    """Refuse a message whose maps have too many entries.

    Malformed bytes pass: the parser reports them.

    Raises:
        InvalidRequestError: a field has too many entries or bytes.
    """
    if len(raw) > SMALL_BYTES and _holds_map(descriptor):
        _Tally().add(memoryview(raw), descriptor, "")


class _Tally:
    """Numbers of fields and bytes so far; a parser merges repeated occurrences of a part."""

    def __init__(self) -> None:
        self._num_fields = 0
        self._struct_bytes = 0

    def add(self, raw: memoryview, descriptor: Descriptor, prefix: str) -> None:
        for number, content in _read_fields(raw):
            field = descriptor.fields_by_number.get(number)
            name = prefix + (field.name if field else str(number))
            self._num_fields += 1
            if self._num_fields > MAX_FIELDS:
                raise _make_error(name, f"is one of more than {MAX_FIELDS} entries of its message")
            if field is None or field.message_type is None:
                continue
            if field.message_type.full_name == _STRUCT:
                self._add_struct(name, len(content))
            elif not _is_map(field) and _holds_map(field.message_type):
                self.add(content, field.message_type, f"{name}.")

    def _add_struct(self, name: str, num_bytes: int) -> None:
        self._struct_bytes += num_bytes
        if self._struct_bytes > MAX_STRUCT_BYTES:
            description = f"has {self._struct_bytes} bytes; at most {MAX_STRUCT_BYTES} are allowed"
            raise _make_error(name, description)


@cache
def _holds_map(descriptor: Descriptor) -> bool:
    return any(
        _is_map(field) or field.message_type.full_name == _STRUCT or _holds_map(field.message_type)
        for field in descriptor.fields
        if field.message_type is not None
    )


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _read_fields(raw: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield each field's number and bytes, up to the first malformed one."""
    offset = 0
    try:
        while offset < len(raw):
            tag, offset = _read_varint(raw, offset)
            wire_type, begin = tag & 7, offset
            if wire_type == _VARINT:
                _, offset = _read_varint(raw, offset)
            elif wire_type == _LENGTH:
                length, begin = _read_varint(raw, offset)
                offset = begin + length
            elif wire_type in _SIZES:
                offset += _SIZES[wire_type]
            else:
                return
            yield tag >> 3, raw[begin:offset]
    except ValueError:
        return


def _read_varint(raw: memoryview, offset: int) -> tuple[int, int]:
    """Read a varint; return it, and the offset after it.

    Raises:
        ValueError: the message ends within it, or it is too long.
    """
    found = decode_varint(raw, offset)
    if found is None:
        raise ValueError("the message ends within a varint")
    return found


def _make_error(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation(field, description))
