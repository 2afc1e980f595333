"""Attributes of a span as bytes: what never changes is made once, what does is put into it.

Keys, tags and lengths are those that opentelemetry-proto's own messages serialise to; nothing
here knows how the wire writes them.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence_server.telemetry.otlp.attributes import AttributeValue, key_values

# A number whose bytes are nowhere in what stands around it.
_MARK = -1.2345678901234567e-300
_MARK_BYTES = struct.pack("<d", _MARK)


def attributes_bytes(attributes: Mapping[str, AttributeValue | None]) -> bytes:
    """Serialise attributes of a span, as they stand in it; None stands for absent."""
    return bytes(Span(attributes=key_values(attributes)).SerializeToString())


class Integers:
    """Attributes that hold integers and arrays of them, and texts: always the same ones.

    An integer takes one byte to ten. So the messages are kept, set anew, and serialised: that
    takes a tenth of the time that it takes to build them. Not for several threads at a time.

    Args:
        attributes: in order; what they hold says of what kind it is, and of an array how long.
    """

    def __init__(self, attributes: Mapping[str, AttributeValue]) -> None:
        self._span = Span(attributes=key_values(attributes))
        values = list(_single_values(self._span))
        self._texts = [value for value in values if value.HasField("string_value")]
        self._integers = [value for value in values if value.HasField("int_value")]

    def encode(self, integers: Sequence[int], texts: Sequence[str] = ()) -> bytes:
        """Serialise the attributes with these numbers and texts, in their order.

        Raises:
            ValueError: there are more or fewer than the attributes hold.
        """
        if len(integers) != len(self._integers) or len(texts) != len(self._texts):
            raise ValueError(
                f"{len(integers)} integers and {len(texts)} texts for attributes that hold "
                f"{len(self._integers)} and {len(self._texts)}"
            )
        # zip's own check of the lengths would take longer than all else here.
        for value, integer in zip(self._integers, integers):  # noqa: B905
            value.int_value = integer
        for value, text in zip(self._texts, texts):  # noqa: B905
            value.string_value = text
        return self._span.SerializeToString()


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

    def encode(self, numbers: Sequence[float]) -> bytes:
        """Serialise the attributes with these numbers, in the order of the keys.

        Raises:
            ValueError: there are more or fewer than the attributes hold.
        """
        self._parts[1::2] = numbers
        return self._pack(*self._parts)


def _single_values(span: Span) -> Iterator[AnyValue]:
    """Return the attributes' values in order; for an array, its elements."""
    for attribute in span.attributes:
        if attribute.value.HasField("array_value"):
            yield from attribute.value.array_value.values
        else:
            yield attribute.value
