"""Reading of a JSON Schema: strict JSON, and only keywords that are enforced."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from whence_server.constraints.errors import ConstraintError

_ENFORCED = frozenset(
    {
        *("$ref", "allOf", "anyOf", "oneOf", "const", "enum", "type"),
        *("items", "prefixItems", "minItems", "maxItems"),
        *("properties", "patternProperties", "additionalProperties", "required"),
        *("minProperties", "maxProperties"),
        *("minLength", "maxLength", "pattern", "format"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    }
)
"""Keywords that llguidance enforces, or refuses where it cannot."""
_UNENFORCED = frozenset(
    {
        *("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "$vocabulary"),
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
        *("contentEncoding", "contentMediaType", "contentSchema", "discriminator"),
    }
)
"""Keywords that allow every value: identifiers, definitions and annotations."""
_VENDOR_PREFIX = "x-"
_ENGINE_OPTIONS = "x-guidance"
"""Keyword that would switch off llguidance's checks."""
_ONE_SCHEMA = ("items", "additionalProperties")
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions")
_MAX_DEPTH = 64
_MAX_LISTED = 8


def read_schema(text: str) -> dict[str, Any]:
    """Return a schema as an object.

    Raises:
        ConstraintError: the text is no JSON, names a key twice, is no schema, or holds keywords
            that are not enforced.
    """
    try:
        schema = json.loads(text, object_pairs_hook=_read_object, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ConstraintError(f"is no JSON: {error.msg} at {where}") from None
    except ValueError as error:  # a number of too many digits
        raise ConstraintError(f"is no JSON that can be read: {error}") from None
    except RecursionError:
        raise ConstraintError("is nested too deeply") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        found = "false" if schema is False else f"a {type(schema).__name__}"
        raise ConstraintError(f"must be a schema, an object, and not {found}")
    faults = list(_find_faults(schema, "", 0))
    if faults:
        raise ConstraintError("; ".join(faults[:_MAX_LISTED]))
    return schema


def find_keyword(schema: Any, keyword: str) -> str | None:
    """Return the JSON pointer of the first place of a keyword; None if it is nowhere."""
    for pointer, subschema in _walk(schema, "", 0):
        if keyword in subschema:
            return f"{pointer}/{_escape(keyword)}"
    return None


def _read_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConstraintError(f"names the key {twice!r} twice in one object")
    return read


def _refuse_constant(name: str) -> Any:
    raise ConstraintError(f"is no JSON: {name} is no number of JSON")


def _find_faults(schema: Any, pointer: str, depth: int) -> Iterator[str]:
    for at, subschema in _walk(schema, pointer, depth):
        for keyword in subschema:
            if keyword == _ENGINE_OPTIONS or not _is_known(keyword):
                yield f"{at}/{_escape(keyword)}: the keyword {keyword!r} is not supported"
        yield from _find_repeated_names(subschema, at)


def _is_known(keyword: str) -> bool:
    return keyword in _ENFORCED or keyword in _UNENFORCED or keyword.startswith(_VENDOR_PREFIX)


def _find_repeated_names(subschema: Mapping[str, Any], at: str) -> Iterator[str]:
    """Refuse a minimum number of properties that repeated names could seem to reach."""
    least = subschema.get("minProperties", 0)
    required = subschema.get("required", [])
    if isinstance(least, int) and isinstance(required, list) and least > max(1, len(required)):
        yield (
            f"{at}/minProperties: {least} is not supported above the number of required "
            "properties, as names that the schema does not list may repeat"
        )


def _walk(schema: Any, pointer: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each subschema that is an object, with its JSON pointer."""
    if depth > _MAX_DEPTH:
        raise ConstraintError(f"{pointer}: schemas are nested deeper than {_MAX_DEPTH} levels")
    if not isinstance(schema, dict):
        return
    yield pointer, schema
    for keyword, value in schema.items():
        at = f"{pointer}/{_escape(keyword)}"
        if keyword in _ONE_SCHEMA:
            yield from _walk(value, at, depth + 1)
        elif keyword in _SCHEMAS and isinstance(value, list):
            for i, one in enumerate(value):
                yield from _walk(one, f"{at}/{i}", depth + 1)
        elif keyword in _NAMED_SCHEMAS and isinstance(value, dict):
            for name, one in value.items():
                yield from _walk(one, f"{at}/{_escape(name)}", depth + 1)


def _escape(name: str) -> str:
    """Return a part of a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
