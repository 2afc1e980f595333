"""JSON values as OTLP's structured values."""

from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

_INT64 = range(-(2**63), 2**63)


def make_json_value(value: Any) -> AnyValue:
    """Encode a JSON value; null has no kind, and an integer beyond 64 bits is text."""
    if isinstance(value, dict):
        pairs = [KeyValue(key=key, value=make_json_value(item)) for key, item in value.items()]
        return AnyValue(kvlist_value=KeyValueList(values=pairs))
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=map(make_json_value, value)))
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, int) and value in _INT64:
        return AnyValue(int_value=value)
    return AnyValue() if value is None else AnyValue(string_value=str(value))
