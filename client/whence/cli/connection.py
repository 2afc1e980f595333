"""Client and argument types of the command line."""

import argparse
import json
from typing import Any

from whence.audit import make_reason_metadata
from whence.channel import DEFAULT_TARGET, TARGET_VARIABLE
from whence.cli.exits import UsageError
from whence.client import Client
from whence.security import (
    CA_VARIABLE,
    CERT_VARIABLE,
    KEY_VARIABLE,
    TOKEN_FILE_VARIABLE,
    TOKEN_VARIABLE,
)


def connect(arguments: argparse.Namespace) -> Client:
    """Return a client of the server that `--target` names.

    Raises:
        UsageError: the target is not an address, or a file is unusable.
    """
    try:
        return Client(
            arguments.target,
            ca=arguments.ca,
            cert=arguments.cert,
            key=arguments.key,
            token_file=arguments.token_file,
            metadata=make_reason_metadata(arguments.reason),
            connect_timeout_s=arguments.connect_timeout,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `connect` reads."""
    parser.add_argument(
        "--target",
        metavar="ADDRESS",
        help="HOST:PORT, https://HOST:PORT for TLS, or unix:PATH "
        f"(default: ${TARGET_VARIABLE}, else {DEFAULT_TARGET})",
    )
    parser.add_argument(
        "--ca",
        metavar="FILE",
        help="PEM file of the CA certificates to trust, which asks for TLS "
        f"(default: ${CA_VARIABLE}, else gRPC's own)",
    )
    parser.add_argument(
        "--cert",
        metavar="FILE",
        help=f"PEM file of the client's certificate (default: ${CERT_VARIABLE}, else none)",
    )
    parser.add_argument(
        "--key",
        metavar="FILE",
        help=f"PEM file of the private key of --cert (default: ${KEY_VARIABLE})",
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="file with the caller's token "
        f"(default: ${TOKEN_VARIABLE}, which is the token, else ${TOKEN_FILE_VARIABLE}, else none)",
    )
    parser.add_argument(
        "--reason",
        metavar="TEXT",
        help="reason for the call, which the server's audit records, at most 256 characters",
    )
    parser.add_argument(
        "--connect-timeout",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="seconds to try to reach the server (default: %(default)g)",
    )


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
