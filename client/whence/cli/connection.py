"""Client and argument types of the command line."""

import argparse
import json
from typing import Any

from whence.cli.exits import UsageError
from whence.client import Client


def connect(arguments: argparse.Namespace) -> Client:
    """Return a client of the server that `--target` names.

    Raises:
        UsageError: the target is not an address.
    """
    try:
        return Client(arguments.target, connect_timeout_s=arguments.connect_timeout)
    except ValueError as error:
        raise UsageError(str(error)) from None


def parse_key_value(text: str) -> tuple[str, str]:
    """Parse `KEY=VALUE`.

    Raises:
        argparse.ArgumentTypeError: there is no "=".
    """
    key, found, value = text.partition("=")
    if not key or not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def parse_json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        argparse.ArgumentTypeError: the text is not one.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text[:64]!r} is not a JSON object")
    return value
