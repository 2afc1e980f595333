"""A step's `internals` as span attributes: source positions and shares of layers."""

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.v1.step_pb2 import Step
from whence_server.telemetry.otlp.wire import encode_length_delimited
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.pieces import Carrier

_MAX_INTEGERS = 65_536
_MAX_HEADS = 4_096
_DOUBLE_BYTES = 8


def encode_internals(
    step: Step,
    shorten_all: Callable[[Sequence[float]], list[float]],
    carrier: Carrier = Span,
) -> bytes:
    """Serialise a step's `internals` as attributes of a message.

    The bytes are joined by hand, because building the messages takes several times as long for
    some dozens of numbers.

    Args:
        step: a step with `internals`; its absent fields make no attributes.
        shorten_all: returns float32 values with the fewest digits.
        carrier: the message that carries them.
    """
    internals = step.internals
    attributes = [
        _encode_integers(names.SOURCE_POSITIONS, internals.source_positions[:], carrier),
        _encode_doubles(names.SOURCE_SHARES, shorten_all(internals.source_shares[:]), carrier),
        _encode_doubles(names.LAYER_SHARES, shorten_all(internals.layer_shares[:]), carrier),
        _encode_integers(names.LAYER_LEADER_TOKEN_IDS, _list_leaders(step), carrier),
    ]
    for field, before in _SHARES[carrier]:
        if internals.HasField(field):
            (share,) = shorten_all((getattr(internals, field),))
            attributes.append(before + struct.pack("<d", share))
    return b"".join(attributes)


def _list_leaders(step: Step) -> list[int]:
    """Return the ids of the leading tokens; none if the content policy keeps ids unrecorded."""
    token_ids = step.candidates.token_ids[:]
    if not token_ids or not step.HasField("token_id"):
        return []
    # The index after the last candidate means the chosen token.
    token_ids.append(step.token_id)
    last = len(token_ids) - 1
    return [token_ids[min(leader, last)] for leader in step.internals.layer_leaders]


def _encode_integers(key: str, integers: Iterable[int], carrier: Carrier) -> bytes:
    elements = b"".join(map(encode_integer, integers))
    return (
        encode_array_head(key, len(elements), carrier.ATTRIBUTES_FIELD_NUMBER) + elements
        if elements
        else b""
    )


def _encode_doubles(key: str, doubles: Sequence[float], carrier: Carrier) -> bytes:
    if not doubles:
        return b""
    elements = _make_packer(len(doubles))(doubles)
    return encode_array_head(key, len(elements), carrier.ATTRIBUTES_FIELD_NUMBER) + elements


@lru_cache(maxsize=_MAX_HEADS)
def encode_array_head(key: str, num_bytes: int, field: int) -> bytes:
    """Serialise the part of an array attribute before its elements.

    Args:
        key: key of the attribute.
        num_bytes: bytes of the elements.
        field: number of the field in the message that carries the attribute.
    """
    rest = bytes(num_bytes)
    value = encode_length_delimited(AnyValue.ARRAY_VALUE_FIELD_NUMBER, rest)
    pair = KeyValue(key=key).SerializeToString()
    pair += encode_length_delimited(KeyValue.VALUE_FIELD_NUMBER, value)
    return encode_length_delimited(field, pair).removesuffix(rest)


@lru_cache(maxsize=_MAX_INTEGERS)
def encode_integer(integer: int) -> bytes:
    """Serialise an element of an array attribute."""
    return ArrayValue(values=[AnyValue(int_value=integer)]).SerializeToString()


def encode_double(double: float) -> bytes:
    """Serialise an element of an array attribute."""
    return _make_packer(1)((double,))


@lru_cache(maxsize=_MAX_HEADS)
def _make_packer(length: int) -> Callable[[Sequence[float]], bytes]:
    """Return a function that serialises `length` doubles, each eight bytes after the same three."""
    before = ArrayValue(values=[AnyValue(double_value=1.0)]).SerializeToString()[:-_DOUBLE_BYTES]
    pack = struct.Struct("<" + f"{len(before)}sd" * length).pack
    unfilled: list[bytes | float] = [before, 0.0] * length

    def pack_doubles(doubles: Sequence[float]) -> bytes:
        parts = unfilled[:]  # a copy, because several exporters may encode at a time
        parts[1::2] = doubles
        return pack(*parts)

    return pack_doubles


def _encode_before_double(key: str, carrier: Carrier) -> bytes:
    attribute = KeyValue(key=key, value=AnyValue(double_value=1.0))
    return bytes(carrier(attributes=[attribute]).SerializeToString()[:-_DOUBLE_BYTES])


_CARRIERS: tuple[Carrier, ...] = (Span, Span.Event)
_SHARE_FIELDS: tuple[tuple[Literal["self_share", "sink_share"], str], ...] = (
    ("self_share", names.SOURCE_SELF_SHARE),
    ("sink_share", names.SOURCE_SINK_SHARE),
)
_SHARES = {
    carrier: [(field, _encode_before_double(name, carrier)) for field, name in _SHARE_FIELDS]
    for carrier in _CARRIERS
}
