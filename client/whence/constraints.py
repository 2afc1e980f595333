"""Constraints of an output, as the options of `generate` give them."""

from collections.abc import Mapping
from typing import Any

from whence.arguments import encode_json, require_mapping, require_text

_LANGUAGES = ("json_schema", "regex", "grammar")


def refuse_contradicting(given: Mapping[str, Any]) -> None:
    """Refuse several constraints, and a syntax without a grammar.

    Raises:
        ValueError: options contradict.
    """
    asked = [name for name in _LANGUAGES if name in given]
    if len(asked) > 1:
        names = " and ".join(f"`{name}`" for name in asked)
        raise ValueError(f"{names} contradict: give one of them")
    if "grammar_syntax" in given and "grammar" not in given:
        raise ValueError("`grammar_syntax` is the syntax of `grammar`: give that with it")


def encode_schema(name: str, schema: Any) -> str:
    """Return the text of a JSON Schema: of a mapping, of a pydantic model, or as it is given.

    Raises:
        TypeError: the value is none of them.
        ValueError: it holds a value that JSON does not have.
    """
    if isinstance(schema, str):
        return require_text(name, schema)
    make_schema = getattr(schema, "model_json_schema", None)
    return encode_json(name, require_mapping(name, make_schema() if make_schema else schema))
