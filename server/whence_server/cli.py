"""The `whence-server` command."""

import argparse
import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from whence_server import config, logs
from whence_server.domain.errors import ConfigurationError, JournalError, LineageError
from whence_server.training import verify_command, weigh_heads

_EPILOG = """exit status: 0 drained and closed; 1 the engine or the journal was lost; 2 a setting, a
model or a data directory that the server cannot start with"""

_TRAIN_EPILOG = """exit status: 0 trained; 1 the record or a checkpoint could not be written, or is
of something else; 2 a setting or a text that cannot be trained with; 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit status: 0 done, 1 the engine, the journal or a record was lost, 2 it cannot start
        so, 130 interrupted.
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
    verify = commands.add_parser(
        "verify",
        help="walk a journal's hash chain, while no server uses it",
        epilog="exit status: 0 intact; 1 not; 2 no journal, or one in use",
        allow_abbrev=False,
    )
    verify.add_argument("--data-dir", type=Path, required=True, metavar="DIR")
    verify_model = commands.add_parser(
        "verify-model",
        help="hold a model to the record of its training",
        epilog=verify_command.EPILOG,
        allow_abbrev=False,
    )
    verify_command.add_arguments(verify_model)
    weigh = commands.add_parser(
        "weigh-heads",
        help="make a file of head weights, for sources",
        epilog="exit status: 0 written; 2 a model, a text or a file that cannot be used",
        allow_abbrev=False,
    )
    weigh_heads.add_arguments(weigh)
    train = commands.add_parser(
        "train",
        help="train a model on text files, every update on record",
        epilog=_TRAIN_EPILOG,
        allow_abbrev=False,
    )
    config.add_train_arguments(train)
    parsed = parser.parse_args(arguments)
    try:
        return _COMMANDS[parsed.command](parsed)
    except ConfigurationError as error:
        print(f"whence-server: {error}", file=sys.stderr)
        return 2
    except (JournalError, LineageError) as error:
        print(f"whence-server: {error}", file=sys.stderr)
        return 1


def _serve(parsed: argparse.Namespace) -> int:
    from whence_server.app import serve

    settings = config.serve_config(parsed, os.environ)
    logs.configure(settings.log_level, settings.log_format)
    return asyncio.run(serve(settings))


def _train(parsed: argparse.Namespace) -> int:
    given = config.train_settings(parsed)
    if importlib.util.find_spec("accelerate") is None:
        raise ConfigurationError("accelerate is not installed: pip install 'whence[server,train]'")
    # Read once, when torch is loaded: threads that spin while they wait for each other make a
    # training ten times slower beside any other busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from whence_server.training.command import run

    return run(given)


def _verify(parsed: argparse.Namespace) -> int:
    from whence_server.app import verify

    report = asyncio.run(verify(parsed.data_dir))
    if report.intact:
        print(f"{report.num_entries} entries, intact; the chain's head is {report.head}")
        return 0
    print(f"broken at entry {report.broken_position}: {report.detail}", file=sys.stderr)
    return 1


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "train": _train,
    "verify": _verify,
    "verify-model": verify_command.run,
    "weigh-heads": weigh_heads.run,
}

if __name__ == "__main__":
    sys.exit(main())
