"""A step's `internals` as span attributes: source positions and shares of layers."""

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.v1.step_pb2 import Step
from whence_server.telemetry.otlp.wire import length_delimited
from whence_server.telemetry.spans import names

_MAX_INTEGERS = 65_536
_MAX_HEADS = 4_096
_DOUBLE_BYTES = 8


def internals_attributes(step: Step) -> bytes:
    """Serialise what a step's `internals` say as attributes of a Span message.

    They hold some dozens of numbers, which are put together by hand: to build the messages
    takes several times as long.

    Args:
        step: it has `internals`; parts that they lack make no attributes.
    """
    internals = step.internals
    attributes = [
        _integers(names.SOURCE_POSITIONS, internals.source_positions[:]),
        _doubles(names.SOURCE_SHARES, internals.source_shares[:]),
        _doubles(names.LAYER_SHARES, internals.layer_shares[:]),
        _integers(names.LAYER_LEADER_TOKEN_IDS, _leaders(step)),
    ]
    if internals.HasField("self_share"):
        attributes.append(_SELF_SHARE + struct.pack("<d", internals.self_share))
    return b"".join(attributes)


def _leaders(step: Step) -> list[int]:
    """The leading tokens' ids; none where the content policy keeps ids out of the journal."""
    token_ids = step.candidates.token_ids[:]
    if not token_ids or not step.HasField("token_id"):
        return []
    # One index beyond the candidates stands for the chosen token.
    token_ids.append(step.token_id)
    last = len(token_ids) - 1
    return [token_ids[min(leader, last)] for leader in step.internals.layer_leaders]


def _integers(key: str, integers: Iterable[int]) -> bytes:
    elements = b"".join(map(_integer, integers))
    return _array_head(key, len(elements)) + elements if elements else b""


def _doubles(key: str, doubles: Sequence[float]) -> bytes:
    if not doubles:
        return b""
    elements = _packer(len(doubles))(doubles)
    return _array_head(key, len(elements)) + elements


@lru_cache(maxsize=_MAX_HEADS)
def _array_head(key: str, num_bytes: int) -> bytes:
    """All of an attribute that stands before so many bytes of an array's elements."""
    rest = bytes(num_bytes)
    value = length_delimited(AnyValue.ARRAY_VALUE_FIELD_NUMBER, rest)
    pair = KeyValue(key=key).SerializeToString()
    pair += length_delimited(KeyValue.VALUE_FIELD_NUMBER, value)
    return length_delimited(Span.ATTRIBUTES_FIELD_NUMBER, pair).removesuffix(rest)


@lru_cache(maxsize=_MAX_INTEGERS)
def _integer(integer: int) -> bytes:
    return ArrayValue(values=[AnyValue(int_value=integer)]).SerializeToString()


@lru_cache(maxsize=_MAX_HEADS)
def _packer(length: int) -> Callable[[Sequence[float]], bytes]:
    """What serialises so many doubles: each takes eight bytes after the same three."""
    before = ArrayValue(values=[AnyValue(double_value=1.0)]).SerializeToString()[:-_DOUBLE_BYTES]
    pack = struct.Struct("<" + f"{len(before)}sd" * length).pack
    unfilled: list[bytes | float] = [before, 0.0] * length

    def packed(doubles: Sequence[float]) -> bytes:
        parts = unfilled[:]  # several exporters may encode at a time
        parts[1::2] = doubles
        return pack(*parts)

    return packed


def _before_double(key: str) -> bytes:
    attribute = KeyValue(key=key, value=AnyValue(double_value=1.0))
    return Span(attributes=[attribute]).SerializeToString()[:-_DOUBLE_BYTES]


_SELF_SHARE = _before_double(names.SOURCE_SELF_SHARE)
