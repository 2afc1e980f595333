"""Translation of constraints to the one form that llguidance compiles: its Lark."""

import json
from typing import Any

from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark

from whence_server.constraints.errors import ConstraintError
from whence_server.constraints.json_schema import read_schema
from whence_server.domain.constraints import Constraint, GrammarSyntax, Language

_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
"""Without it, llguidance leaves only its own tokenization of bytes that are certain. Here every
token remains that the language allows, so that what the record counts as removed is ruled out by
the language and by nothing else."""
_WHITESPACE = r"[ \n\r\t]{1,64}"
"""Whitespace between parts of a JSON text; bounded, because small models repeat it endlessly."""
_SCHEMA_OPTIONS = {"whitespace_pattern": _WHITESPACE, "lenient": False, "coerce_one_of": False}


def translate(constraint: Constraint) -> str:
    """Return llguidance's Lark for a constraint; it is not compiled yet.

    Raises:
        ConstraintError: the text cannot be read.
    """
    match constraint.language, constraint.syntax:
        case Language.JSON_SCHEMA, _:
            return _translate_schema(read_schema(constraint.text))
        case Language.REGEX, _:
            return f"start: /{regex_to_lark(constraint.text)}/{_NO_FORCING}"
        case _, GrammarSyntax.EBNF:
            return _translate_ebnf(constraint.text) + _NO_FORCING
    return constraint.text + _NO_FORCING


def _translate_schema(schema: dict[str, Any]) -> str:
    try:
        text = json.dumps({"x-guidance": _SCHEMA_OPTIONS, **schema})
    except RecursionError:
        raise ConstraintError("is nested too deeply") from None
    return f"start: %json {text}{_NO_FORCING}"


def _translate_ebnf(text: str) -> str:
    try:
        return gbnf_to_lark(text)
    except Exception as error:  # noqa: BLE001 - the converter raises whatever it runs into
        raise ConstraintError(f"is no EBNF as llama.cpp reads it: {error}") from None
