"""The `whence` command: its parser, and the exit statuses of its errors."""

import argparse
import os
import sys
from collections.abc import Sequence

from whence.cli import audit, connection, exits, generate, generations, model, training
from whence.errors import WhenceError
from whence.summary import escape


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (listed in `whence --help`)."""
    arguments = make_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal cannot show must not end the generation.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes standard output again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.BROKEN_PIPE
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except exits.UsageError as error:
        return _complain(str(error), exits.USAGE)
    except WhenceError as error:
        reason = f" ({error.reason})" if error.reason else ""
        return _complain(f"{error.message}{reason}", exits.exit_status(error))
    return status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    connection.add_arguments(common)
    whole = argparse.ArgumentParser(
        prog="whence",
        description="Stream a language model's tokens, and show where each came from.",
        epilog=exits.EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action=_Version, nargs=0, help="show the version, and exit")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    generate.add_command(commands, common)
    generations.add_commands(commands, common)
    training.add_commands(commands, common)
    model.add_command(commands, common)
    audit.add_command(commands, common)
    return whole


class _Version(argparse.Action):
    """Option that looks up the version only when it is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from whence import __version__

        print(f"whence {__version__}")
        parser.exit()


def _complain(message: str, status: int) -> int:
    print(f"whence: {escape(message)}", file=sys.stderr)
    return status
