"""The `whence` command: its parser, and the exit statuses of its errors."""

import argparse
import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status (listed in `whence --help`)."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["verify-bundle"]:
        # It is done before gRPC, which it does not need, is imported.
        from whence.cli import verify_bundle

        return verify_bundle.main(given[1:])
    return _run(given)


def _run(given: Sequence[str]) -> int:
    from whence.cli import exits
    from whence.errors import WhenceError

    arguments = make_parser().parse_args(given)
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
    from whence.cli import (
        audit,
        bundles,
        connection,
        exits,
        explain,
        find,
        fork,
        generate,
        generations,
        log,
        model,
        training,
        verify,
        verify_bundle,
    )

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
    fork.add_command(commands, common)
    generations.add_commands(commands, common)
    find.add_command(commands, common)
    explain.add_command(commands, common)
    verify.add_command(commands, common)
    training.add_commands(commands, common)
    model.add_command(commands, common)
    audit.add_command(commands, common)
    bundles.add_keys_command(commands, common)
    log.add_commands(commands, common)
    verify_bundle.add_command(commands)
    return whole


class _Version(argparse.Action):
    """Option that looks up the version only when it is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from whence import __version__

        print(f"whence {__version__}")
        parser.exit()


def _complain(message: str, status: int) -> int:
    from whence.summary import escape

    print(f"whence: {escape(message)}", file=sys.stderr)
    return status
