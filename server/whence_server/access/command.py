"""The command `whence-server token new`."""

import argparse
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from whence_server.access.new_token import append_line, make_token
from whence_server.access.token_file import ID, parse_scopes, read_token_file
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.identity import Scope

EPILOG = """exit status: 0 made; 2 an argument cannot be used, or the file cannot be written"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand and its arguments."""
    commands = parser.add_subparsers(dest="token_command", required=True)
    new = commands.add_parser(
        "new",
        help="make a token, and show it once",
        description="Make a random token. It is printed on standard output, once: the file keeps "
        "only its SHA-256.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    new.add_argument("--id", required=True, metavar="ID", help="id of the caller")
    new.add_argument(
        "--scopes",
        required=True,
        metavar="SCOPES",
        help=f"scopes with commas between: {', '.join(Scope)}",
    )
    new.add_argument(
        "--expires",
        metavar="WHEN",
        help="a number of days or hours, as 90d or 12h, or a time, as 2027-01-31T00:00:00Z "
        "(default: never)",
    )
    new.add_argument(
        "--auth-tokens",
        type=Path,
        metavar="FILE",
        help="file to add the line to (default: the line is printed on standard error)",
    )


def run(parsed: argparse.Namespace) -> int:
    """Make a token; return the exit status.

    Raises:
        ConfigurationError: an argument or the file cannot be used.
    """
    if not ID.fullmatch(parsed.id):
        raise ConfigurationError(
            f"--id {parsed.id!r}: expected 1 to 128 printable ASCII characters without spaces"
        )
    try:
        scopes = parse_scopes([part.strip() for part in parsed.scopes.split(",")])
    except ValueError as error:
        raise ConfigurationError(f"--scopes {parsed.scopes!r}: {error}") from None
    new = make_token(parsed.id, scopes, _parse_expiry(parsed.expires))
    if parsed.auth_tokens is None:
        print(f"line for --auth-tokens: {new.line}", file=sys.stderr)
    else:
        if parsed.auth_tokens.exists():
            read_token_file(parsed.auth_tokens)  # nothing is added to another kind of file
        append_line(parsed.auth_tokens, new.line)
    print(new.token)
    return 0


def _parse_expiry(text: str | None) -> datetime | None:
    """Parse a length of time from now, or a time.

    Raises:
        ConfigurationError: it is neither, or has passed.
    """
    if text is None:
        return None
    now = datetime.now(UTC)
    if found := re.fullmatch(r"([1-9][0-9]{0,4})([dh])", text):
        hours = int(found[1]) * (24 if found[2] == "d" else 1)
        return now + timedelta(hours=hours)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None or time <= now:
        raise ConfigurationError(
            f"--expires {text!r}: expected a length of time, as 90d or 12h, or a time to come "
            "with a zone, as 2027-01-31T00:00:00Z"
        )
    return time.astimezone(UTC)
