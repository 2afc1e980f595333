"""Client and argument types of the command line."""

import argparse

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
