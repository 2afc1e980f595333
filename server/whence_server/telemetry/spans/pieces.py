"""Templates of serialised span attributes: constant bytes are made once, values filled in.

Keys, tags and lengths are taken from serialised messages of opentelemetry-proto, so that this
module does not depend on protobuf's wire format.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes

Carrier: TypeAlias = type[Span] | type[Span.Event]
"""Message that carries attributes."""

_MAX_HEADS = 4_096

# A number whose bytes do not occur in keys, tags or lengths.
_MARK = -1.2345678901234567e-300
_MARK_BYTES = struct.pack("<d", _MARK)


def serialise_attributes(
    attributes: Mapping[str, AttributeValue | None], carrier: Carrier = Span
) -> bytes:
    """Serialise attributes as fields of a message; those that are None are left out."""
    return bytes(carrier(attributes=encode_attributes(attributes)).SerializeToString())


class Integers:
    """Template of attributes with integers and arrays of integers.

    The messages are kept, and only their values set, which takes a tenth of the time of building
    them; an integer takes one to ten bytes, so that no bytes can be kept. Not thread-safe.

    Args:
        attributes: attributes in order, whose values give the types and the lengths of arrays.
        carrier: the message that carries them.
    """

    def __init__(self, attributes: Mapping[str, AttributeValue], carrier: Carrier = Span) -> None:
        self._message = carrier(attributes=encode_attributes(attributes))
        self._integers = list(_iterate_values(self._message))

    def encode(self, integers: Sequence[int]) -> bytes:
        """Serialise the attributes with these numbers, in their order.

        Raises:
            ValueError: the numbers of values and of the template's places differ.
        """
        places = self._integers
        if len(integers) != len(places):
            raise ValueError(f"got {len(integers)} integers for attributes that hold {len(places)}")
        # Without zip's check of lengths, which would take longer than the rest.
        for value, integer in zip(places, integers):  # noqa: B905
            value.int_value = integer
        return self._message.SerializeToString()


class TextHeads(dict[int, bytes]):
    """Cache of the bytes before an attribute's text, by the length of the text in UTF-8.

    Args:
        key: key of the attribute.
        carrier: the message that carries it.
    """

    def __init__(self, key: str, carrier: Carrier = Span) -> None:
        super().__init__()
        self._key = key
        self._carrier = carrier

    def __missing__(self, num_bytes: int) -> bytes:
        """Make and cache the bytes before a text."""
        if len(self) >= _MAX_HEADS:
            self.clear()
        text = "x" * num_bytes
        whole = serialise_attributes({self._key: text}, self._carrier)
        made = self[num_bytes] = whole[: len(whole) - num_bytes]
        return made


class Doubles:
    """Template of attributes with doubles and arrays of doubles.

    Every double takes eight bytes, so that the bytes between two of them never change.

    Args:
        keys: keys of attributes that hold one double.
        arrays: keys and lengths of attributes that hold an array; empty ones are left out.
        carrier: the message that carries them.
    """

    def __init__(
        self,
        keys: Iterable[str],
        arrays: Iterable[tuple[str, int]] = (),
        carrier: Carrier = Span,
    ) -> None:
        marked: dict[str, AttributeValue] = dict.fromkeys(keys, _MARK)
        marked |= {key: [_MARK] * length for key, length in arrays if length}
        between = serialise_attributes(marked, carrier).split(_MARK_BYTES)[:-1]
        self._parts: list[bytes | float] = [_MARK] * (2 * len(between))
        self._parts[::2] = between
        self._pack = struct.Struct("<" + "".join(f"{len(part)}sd" for part in between)).pack

    def encode(self, numbers: Sequence[float]) -> bytes:
        """Serialise the attributes with these numbers, in the order of the keys.

        Raises:
            ValueError: the numbers of values and of the template's places differ.
        """
        self._parts[1::2] = numbers
        return self._pack(*self._parts)


def _iterate_values(message: Span | Span.Event) -> Iterator[AnyValue]:
    """Yield the attributes' values in order; for an array, its elements."""
    for attribute in message.attributes:
        if attribute.value.HasField("array_value"):
            yield from attribute.value.array_value.values
        else:
            yield attribute.value
