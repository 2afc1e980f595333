"""Faults that llguidance finds in a constraint, in words that name the place."""

import json
import re
from collections.abc import Iterator
from typing import Any

from whence_server.constraints.json_schema import find_keyword, read_schema
from whence_server.domain.constraints import Constraint, GrammarSyntax, Language

_LISTING = re.compile(r"\n +\d+ \| .*", re.DOTALL)
"""The translated text around the fault, which the caller has not written."""
_POSITION = re.compile(r"^(?:at )?(\d+)\((\d+)\): ")
_IN_REGEX = re.compile(r'^invalid regex ".*" \(in regex\): ', re.DOTALL)
_IN_SCHEMA = "failed to compile JSON schema: "
_REGEX_FAULT = re.compile(r"regex parse error:\n {4}(.*)\n {4}( *)\^.*\nerror: (.*)")
_UNIMPLEMENTED = re.compile(r"^Unimplemented keys: (\[.*\])")
_QUOTED = 64
"""Characters of a pattern that a message quotes."""


def explain_fault(error: str, constraint: Constraint) -> str:
    """Return llguidance's error about a constraint as a message that begins with a verb.

    The message gives line and column in a grammar, the character in a regular expression, and the
    JSON pointer in a schema where the error tells it.
    """
    fault = _LISTING.sub("", error).strip()
    position = _POSITION.match(fault)
    fault = _POSITION.sub("", fault, count=1)
    match constraint.language:
        case Language.REGEX:
            return f"is no regular expression: {_explain_regex(_IN_REGEX.sub('', fault))}"
        case Language.JSON_SCHEMA:
            told = fault.removeprefix(_IN_SCHEMA)
            return f"cannot be enforced: {_explain_schema(told, read_schema(constraint.text))}"
    at = ""
    if position is not None and constraint.syntax is GrammarSyntax.LARK:
        at = f" at line {position[1]}, column {position[2]}"
    return f"is no grammar: {_explain_regex(_IN_REGEX.sub('', fault))}{at}"


def _explain_regex(fault: str) -> str:
    found = _REGEX_FAULT.search(fault)
    if found is None:
        return fault
    pattern, before, what = found.groups()
    # A slash is written with a backslash in the translated text.
    place = len(before) - pattern[: len(before)].count("\\/")
    shown = pattern if len(pattern) <= _QUOTED else f"{pattern[:_QUOTED]}…"
    return f"{what} at character {place + 1} of {shown!r}"


def _explain_schema(fault: str, schema: dict[str, Any]) -> str:
    unimplemented = _UNIMPLEMENTED.match(fault)
    if unimplemented is not None:
        return "; ".join(_name_places(json.loads(unimplemented[1]), schema))
    if fault.startswith("oneOf constraints"):
        return (
            f"{find_keyword(schema, 'oneOf') or 'oneOf'}: a value could match two of its schemas, "
            "or that cannot be ruled out; use anyOf"
        )
    if fault.startswith("Unknown format"):
        return f"{find_keyword(schema, 'format') or 'format'}: {fault}"
    return _explain_regex(fault)


def _name_places(keywords: list[str], schema: dict[str, Any]) -> Iterator[str]:
    for keyword in keywords:
        at = find_keyword(schema, keyword) or keyword
        yield f"{at}: the keyword {keyword!r} is not supported here"
