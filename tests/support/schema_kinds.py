"""JSON Schemas of the kinds that public suites have, each with values that it allows and refuses.

The kinds are those of the JSON Schema Test Suite and of JSONSchemaBench; the schemas are our own.
"""

from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A schema with examples."""

    schema: dict[str, Any]
    allowed: list[Any]
    refused: list[Any]


_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}

KINDS: dict[str, Kind] = {
    "any value": Kind({}, [1, "x", None, [1, {"a": []}], {"b": True}], []),
    "null": Kind({"type": "null"}, [None], [0, "null"]),
    "boolean": Kind({"type": "boolean"}, [True, False], [1, "true"]),
    "several types": Kind({"type": ["integer", "null"]}, [3, None], ["3", 1.5]),
    "integer in a range": Kind(
        {"type": "integer", "minimum": -3, "exclusiveMaximum": 12}, [-3, 0, 11], [-4, 12, 1.5]
    ),
    "number in a range": Kind(
        {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5}, [0.25, 2.5, 1], [0, 2.75, -1]
    ),
    "multiple": Kind({"type": "integer", "multipleOf": 7, "minimum": 0}, [0, 21, 700], [1, 20]),
    "short string": Kind(
        {"type": "string", "minLength": 2, "maxLength": 4}, ["ab", "héé"], ["a", "abcde"]
    ),
    "pattern": Kind(
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}, ["AB-123"], ["AB-12", "ab-123"]
    ),
    "pattern anywhere": Kind({"type": "string", "pattern": "[0-9]x"}, ["a5xb", "5x"], ["a5", "x5"]),
    "date": Kind({"type": "string", "format": "date"}, ["2024-02-28"], ["2024-13-01", "yesterday"]),
    "uuid": Kind(
        {"type": "string", "format": "uuid"}, ["6f1c2f0e-1d2b-4c57-9a41-0c3f5f7f9d10"], ["6f1c2f0e"]
    ),
    "enum": Kind({"enum": ["red", 4, None, {"a": [1]}]}, ["red", 4, None, {"a": [1]}], ["blue", 5]),
    "const": Kind({"const": {"kind": "fixed"}}, [{"kind": "fixed"}], [{"kind": "other"}, {}]),
    "array": Kind(
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 4},
        [[1], [1, -2, 3]],
        [[], [1, "2"], [1, 2, 3, 4, 5]],
    ),
    "tuple": Kind(
        {
            "type": "array",
            "prefixItems": [{"type": "string"}, {"type": "boolean"}],
            "items": False,
            "minItems": 2,
        },
        [["a", True]],
        [["a"], [True, "a"], ["a", True, 1]],
    ),
    "record": Kind(
        _PERSON,
        [{"name": "Ann", "age": 4}, {"name": "É", "age": 150, "tags": ["a", "b"]}],
        [{"name": "Ann"}, {"name": "", "age": 3}, {"name": "A", "age": 3, "more": 1}, []],
    ),
    "optional properties": Kind(
        {
            "type": "object",
            "properties": {
                "a": {"type": "integer"},
                "b": {"type": "string"},
                "c": {"type": "null"},
            },
            "additionalProperties": False,
        },
        [{}, {"a": 1}, {"b": "x"}, {"a": 1, "c": None}],
        [{"a": "1"}, {"d": 1}],
    ),
    "map": Kind(
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
        [{"x": 1}, {"x": 1, "y": 2}],
        [{}, {"x": "1"}],
    ),
    "pattern properties": Kind(
        {
            "type": "object",
            "patternProperties": {"^n_": {"type": "number"}, "^s_": {"type": "string"}},
            "additionalProperties": False,
        },
        [{"n_a": 1.5}, {"s_b": "x", "n_c": 2}],
        [{"n_a": "x"}, {"z": 1}],
    ),
    "any of": Kind({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, [1, False], ["x", None]),
    "one of, told apart": Kind(
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"k": {"const": "a"}, "x": {"type": "integer"}},
                    "required": ["k", "x"],
                    "additionalProperties": False,
                },
                {
                    "type": "object",
                    "properties": {"k": {"const": "b"}, "y": {"type": "string"}},
                    "required": ["k", "y"],
                    "additionalProperties": False,
                },
            ]
        },
        [{"k": "a", "x": 1}, {"k": "b", "y": "s"}],
        [{"k": "a", "y": "s"}, {"k": "c", "x": 1}],
    ),
    "all of": Kind(
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, [3, 5], [2, 6, "4"]
    ),
    "definitions": Kind(
        {
            "$defs": {
                "point": {
                    "type": "object",
                    "properties": {"x": {"type": "integer"}},
                    "required": ["x"],
                    "additionalProperties": False,
                }
            },
            "type": "array",
            "items": {"$ref": "#/$defs/point"},
            "maxItems": 2,
        },
        [[], [{"x": 1}, {"x": 2}]],
        [[{"y": 1}], [{"x": "1"}]],
    ),
    "recursion": Kind(
        {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
            },
            "required": ["v", "next"],
            "additionalProperties": False,
        },
        [{"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": None}}],
        [{"v": 1}, {"v": 1, "next": {"v": 2}}],
    ),
    "annotations": Kind(
        {
            "title": "t",
            "description": "d",
            "default": 3,
            "examples": [1],
            "type": "integer",
            "x-order": 1,
            "$comment": "c",
        },
        [7],
        ["7"],
    ),
}

REFUSED: dict[str, dict[str, Any]] = {
    "/uniqueItems": {"type": "array", "uniqueItems": True},
    "/not": {"not": {"type": "string"}},
    "/if": {"if": {"type": "string"}, "then": {"minLength": 1}},
    "/contains": {"type": "array", "contains": {"type": "null"}},
    "/properties/a/dependentRequired": {"properties": {"a": {"dependentRequired": {"a": ["b"]}}}},
    "/propertyNames": {"propertyNames": {"pattern": "^a"}},
    "/items/unevaluatedProperties": {"items": {"unevaluatedProperties": False}},
    "/properties/a~1b/minLenght": {"properties": {"a/b": {"minLenght": 3}}},
    "/format": {"type": "string", "format": "iri"},
    "/oneOf": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "string", "maxLength": 5}]},
    "/minProperties": {"type": "object", "minProperties": 3},
    "/x-guidance": {"x-guidance": {"lenient": True}},
}
"""Schemas that are refused, by the JSON pointer of the place."""
