"""Encoding of Python values as OTLP attributes."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

AttributeValue: TypeAlias = str | bool | int | float | Sequence[str | bool | int | float]


def encode_attributes(attributes: Mapping[str, AttributeValue | None]) -> list[KeyValue]:
    """Encode attributes in the mapping's order; those that are None are left out."""
    return [
        KeyValue(key=key, value=_make_any_value(value))
        for key, value in attributes.items()
        if value is not None
    ]


def _make_any_value(value: AttributeValue) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):  # before int, because bool is a subclass of it
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=[_make_any_value(item) for item in value]))
