"""Attributes of a span as bytes, put together of what never changes and of what does.

What never changes is cut out of messages that opentelemetry-proto serialised: keys, tags and
lengths are its own, and nothing here knows a field's number but by its name.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence

from google.protobuf.message import Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence_server.telemetry.attributes import AttributeValue, key_values
from whence_server.telemetry.wire import length_delimited, varint

_MAX_HEADS = 4_096
_MAX_ELEMENTS = 32_768
_MAX_VARINT_BYTES = 10
_TWO_TO_64 = 1 << 64
# A number whose bytes are nowhere in what stands around it.
_MARK = -1.2345678901234567e-300
_MARK_BYTES = struct.pack("<d", _MARK)


def attributes_bytes(attributes: Mapping[str, AttributeValue | None]) -> bytes:
    """Serialises attributes of a span, as they stand in it; None stands for absent."""
    return bytes(Span(attributes=key_values(attributes)).SerializeToString())


def text_bytes(key: str, text: str) -> bytes:
    """Serialises a span's attribute that holds a text."""
    value = length_delimited(AnyValue.STRING_VALUE_FIELD_NUMBER, text.encode())
    return _attribute_bytes(_key_bytes(key), value)


class Integers(dict[int, bytes]):
    """Messages that hold one integer, by the integer: many are remembered.

    Many an integer comes again: of sixteen sequences that are decoded together, all have the
    same costs, and a model's likely tokens are few.

    Args:
        around: makes the message that holds an int64.
        max_remembered: then all are forgotten. A hundred bytes each.
    """

    def __init__(self, around: Callable[[int], Message], max_remembered: int = 4_096) -> None:
        super().__init__()
        self._max_remembered = max_remembered
        samples = [1 << 7 * n for n in range(_MAX_VARINT_BYTES - 1)]
        # What stands before an integer holds its length, so there is one for each.
        self._heads = [
            around(sample).SerializeToString()[:-num_bytes]
            for num_bytes, sample in enumerate([*samples, -1], start=1)
        ]

    def __missing__(self, value: int) -> bytes:
        """Serialises the message that is not remembered."""
        if len(self) >= self._max_remembered:
            self.clear()
        encoded = varint(value if value >= 0 else value + _TWO_TO_64)
        piece = self[value] = self._heads[len(encoded) - 1] + encoded
        return piece


def integer_attributes(key: str) -> Integers:
    """A span's attributes that hold an integer."""
    return Integers(
        lambda value: Span(attributes=[KeyValue(key=key, value=AnyValue(int_value=value))])
    )


class IntegerArrays:
    """A span's attributes that hold an array of integers; an empty one is left out.

    Args:
        key: theirs.
        elements: shared by all arrays that hold the like.
    """

    def __init__(self, key: str, elements: Integers) -> None:
        self._key = _key_bytes(key)
        self._element = elements.__getitem__
        self._heads: dict[int, bytes] = {}  # by the bytes that the elements take

    def of(self, values: Iterable[int]) -> bytes:
        """Serialises the attribute."""
        elements = b"".join(map(self._element, values))
        if not elements:
            return b""
        head = self._heads.get(len(elements))
        if head is None:
            value = length_delimited(AnyValue.ARRAY_VALUE_FIELD_NUMBER, elements)
            head = _attribute_bytes(self._key, value)[: -len(elements)]
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            self._heads[len(elements)] = head
        return head + elements


def integer_elements() -> Integers:
    """An array's elements that are integers."""
    return Integers(
        lambda value: ArrayValue(values=[AnyValue(int_value=value)]), max_remembered=_MAX_ELEMENTS
    )


class Doubles:
    """Attributes that hold doubles and arrays of them, always the same ones, always as long.

    A double takes eight bytes whatever it is: what stands between two never changes.

    Args:
        keys: of the attributes that hold one.
        arrays: of those that hold several, each with how many; those with none are left out.
    """

    def __init__(self, keys: Iterable[str], arrays: Iterable[tuple[str, int]] = ()) -> None:
        marked: dict[str, AttributeValue] = dict.fromkeys(keys, _MARK)
        marked |= {key: [_MARK] * length for key, length in arrays if length}
        between = attributes_bytes(marked).split(_MARK_BYTES)[:-1]
        self._parts: list[bytes | float] = [_MARK] * (2 * len(between))
        self._parts[::2] = between
        self._pack = struct.Struct("<" + "".join(f"{len(part)}sd" for part in between)).pack

    def of(self, numbers: Sequence[float]) -> bytes:
        """Serialises the attributes with these numbers, in the order of the keys.

        Raises:
            ValueError: there are more or fewer than the attributes hold.
        """
        self._parts[1::2] = numbers
        return self._pack(*self._parts)


def _key_bytes(key: str) -> bytes:
    return bytes(KeyValue(key=key).SerializeToString())


def _attribute_bytes(key: bytes, value: bytes) -> bytes:
    """A span's attribute, of its serialised key and its value's serialised AnyValue."""
    return length_delimited(
        Span.ATTRIBUTES_FIELD_NUMBER,
        key + length_delimited(KeyValue.VALUE_FIELD_NUMBER, value),
    )
