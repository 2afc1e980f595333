"""The `whence-server` command."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from whence_server import config
from whence_server.domain.errors import ConfigurationError, JournalError

_EPILOG = """exit status: 0 drained and closed; 1 the engine or the journal was lost; 2 a setting, a
model or a data directory that the server cannot start with"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit status: 0 done, 1 the engine or the journal was lost, 2 the server cannot start so.
    """
    parser = argparse.ArgumentParser(
        prog="whence-server",
        description="Serves a language model's tokens with the reason for each.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve", help="load a model and serve it", epilog=_EPILOG, allow_abbrev=False
    )
    config.add_arguments(serve)
    parsed = parser.parse_args(arguments)
    try:
        return _serve(config.serve_config(parsed, os.environ))
    except ConfigurationError as error:
        print(f"whence-server: {error}", file=sys.stderr)
        return 2
    except JournalError as error:
        print(f"whence-server: {error}", file=sys.stderr)
        return 1


def _serve(settings: config.ServeConfig) -> int:
    from whence_server.app import serve

    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
