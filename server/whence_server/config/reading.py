"""Reading of settings: flags and environment variables to the values of a class's fields."""

import argparse
import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from whence_server.config.spelling import parse_switch, require_utf8, spell_flag, spell_variable
from whence_server.domain.errors import ConfigurationError


def get_flag(field: dataclasses.Field[Any]) -> str:
    """Return the command-line flag of a setting's field."""
    return field.metadata["each"] or spell_flag(field.name)


def add_field_arguments(
    parser: argparse.ArgumentParser, fields: Collection[dataclasses.Field[Any]]
) -> None:
    """Add the flags of settings to a parser; `read_field_values` reads them."""
    for field in fields:
        text = f"{field.metadata['help']} [{spell_variable(field.name)}]".replace("%", "%%")
        if field.metadata["parse"] is parse_switch:
            parser.add_argument(
                spell_flag(field.name),
                dest=field.name,
                action="store_const",
                const="true",
                help=text,
            )
        else:
            parser.add_argument(
                get_flag(field),
                dest=field.name,
                action="append" if field.metadata["each"] else "store",
                metavar=field.metadata["metavar"],
                help=text,
            )


def read_field_values(
    fields: Collection[dataclasses.Field[Any]],
    arguments: argparse.Namespace,
    environment: Mapping[str, str],
    paths: Collection[str] = (),
) -> dict[str, Any]:
    """Return the values of the settings that are given; a flag wins over its variable.

    Args:
        fields: fields of the settings.
        arguments: the parsed flags.
        environment: the environment variables.
        paths: names of the fields that are paths, which need not be UTF-8.

    Raises:
        ConfigurationError: a value is malformed.
    """
    values: dict[str, Any] = {}
    for field in fields:
        text, source = getattr(arguments, field.name, None), get_flag(field)
        if text is None:
            source = spell_variable(field.name)
            text = environment.get(source)
        if text is None:
            continue
        is_path = field.name in paths
        if field.metadata["each"]:
            values[field.name] = _parse_each(field, source, text, is_path)
        else:
            values[field.name] = _parse_value(field, source, text, is_path)
    return values


def _parse_each(
    field: dataclasses.Field[Any], source: str, given: str | list[str], is_path: bool
) -> Any:
    """Return the values of a repeated flag, or of its variable, where commas separate them."""
    if isinstance(given, str):
        given = [part.strip() for part in given.split(",") if part.strip()]
    return tuple(_parse_value(field, source, text, is_path) for text in given)


def _parse_value(field: dataclasses.Field[Any], source: str, text: str, is_path: bool) -> Any:
    """Return the value of one text.

    Raises:
        ConfigurationError: it is malformed.
    """
    secret = field.metadata["secret"]
    if not is_path and not secret:
        require_utf8(source, text)
    try:
        return field.metadata["parse"](text)
    except ValueError as error:
        if secret:
            raise ConfigurationError(f"{source}: {error}") from None
        raise ConfigurationError(f"{source} {text!r}: {error}") from None
