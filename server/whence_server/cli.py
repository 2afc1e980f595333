"""The `whence-server` command."""

import argparse
import asyncio
import importlib.util
import io
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from whence_server import config, logs, verify_generation
from whence_server.access import command as token_command
from whence_server.config.environment import copy_environment, use_passive_waiting
from whence_server.domain.errors import ConfigurationError, JournalError, LineageError
from whence_server.domain.journal_url import parse_journal_url
from whence_server.domain.paths import format_path, get_undecodable_bytes
from whence_server.journal.sealing import command as key_command
from whence_server.proof import command as signing_command
from whence_server.proof.witness import arguments as witness_command
from whence_server.training import weigh_heads
from whence_server.training.attest import command as attest_command
from whence_server.training.verify import command as verify_command

if TYPE_CHECKING:
    from whence_server.journal.findings import VerifyReport
    from whence_server.journal.sealing.content_check import KeysToVerify

    # The only name that argparse has for it.
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001

_EPILOG = """exit status: 0 shut down in order; 1 the engine or the journal was lost; 2 the server
cannot start with this setting, model or data directory"""

_VERIFY_EPILOG = """exit status: 0 intact; 1 not intact, each difference is named; 2 the journal is
missing, in use, of a newer version or unreadable; 3 nothing to verify: it has no entries"""

_COMPACT_EPILOG = """exit status: 0 done; 1 another process reads the journal, and the file shrinks
when it lets go; 2 the journal is missing, of a newer version or cannot be compacted now"""

_RETENTION_EPILOG = """exit status: 0 shown; 2 a setting cannot be used, or the journal is
missing or unreadable"""

_TRAIN_EPILOG = """exit status: 0 trained; 1 the record or a checkpoint could not be written, or
belongs to another run; 2 a setting or a text cannot be used; 130 interrupted"""


_COPY_EPILOG = """exit status: 0 copied, and the copy is intact; 1 the source is not intact or the
connection was lost, and nothing was written; 2 the source or the target cannot be used"""
_PLACE = "a data directory, or postgresql://USER@HOST:PORT/DATABASE"
_COPIES = {
    "migrate": "copy a journal that no server uses to another database or directory",
    "backup": "copy a journal to a new directory, also while servers use it",
    "restore": "verify a backup, and copy it to an empty database or directory",
}
_MAY_BE_ANY_BYTES = (
    *("texts", "eval", "journal", "WHENCE_JOURNAL"),
    *("journal_keys", "WHENCE_JOURNAL_KEYS"),
)
"""Names of text files, which need not be UTF-8, and URLs that no message repeats."""
_URL_HELP = "postgresql://USER@HOST:PORT/DATABASE"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0 done; 1 the engine, the journal or a record was lost; 2 a setting or an
        input cannot be used; 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="whence-server",
        description="Serve a language model's tokens with a record of how each was chosen.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve", help="load a model and serve it", epilog=_EPILOG, allow_abbrev=False
    )
    config.add_arguments(serve)
    verify = commands.add_parser(
        "verify",
        help="check the hash chain of a journal, its columns and its transparency log",
        description="Verify a journal in a directory that no server uses, or in a PostgreSQL "
        "database, also while servers use it. The command changes nothing: it writes, creates and "
        "removes no file, so the directory may be read-only.",
        epilog=_VERIFY_EPILOG,
        allow_abbrev=False,
    )
    _add_place(verify)
    key_command.add_key_arguments(verify)
    verify.add_argument(
        "--checkpoint",
        dest="checkpoints",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="checkpoint of the transparency log, or a bundle with one, kept elsewhere; may "
        "be repeated. Entries that were cut off or changed since are found",
    )
    verify.add_argument(
        "--rebuild",
        action="store_true",
        help="if the chain is intact, rebuild the columns that differ from the entries, and verify "
        "again; the entries do not change; no server may use the journal",
    )
    _add_retention_commands(commands)
    for name, text in _COPIES.items():
        copy = commands.add_parser(name, help=text, epilog=_COPY_EPILOG, allow_abbrev=False)
        for flag, field in (("--from", "source"), ("--to", "target")):
            copy.add_argument(flag, dest=field, required=True, metavar="DIR_OR_URL", help=_PLACE)
    verify_model = commands.add_parser(
        "verify-model",
        help="compare a model with the record of its training",
        epilog=verify_command.EPILOG,
        allow_abbrev=False,
    )
    verify_command.add_arguments(verify_model)
    verify_generation.add_arguments(
        commands.add_parser(
            "verify-generation",
            help="compute a saved generation again, and compare every choice",
            epilog=verify_generation.EPILOG,
            allow_abbrev=False,
        )
    )
    weigh = commands.add_parser(
        "weigh-heads",
        help="compute the weights of attention heads in the recorded sources",
        epilog="exit status: 0 written; 2 a model, a text or a file cannot be used",
        allow_abbrev=False,
    )
    weigh_heads.add_arguments(weigh)
    train = commands.add_parser(
        "train",
        help="train a model on text files, and record every update",
        epilog=_TRAIN_EPILOG,
        allow_abbrev=False,
    )
    config.add_train_arguments(train)
    token_command.add_arguments(
        commands.add_parser(
            "token", help="make a caller's token for --auth-tokens", allow_abbrev=False
        )
    )
    key_command.add_arguments(
        commands.add_parser(
            "key", help="make and rotate the master keys of --journal-key", allow_abbrev=False
        )
    )
    attest_command.add_arguments(
        commands.add_parser(
            "attest",
            help="sign a trained model and its record; write its SLSA provenance and its ML-BOM",
            epilog=attest_command.EPILOG,
            allow_abbrev=False,
        )
    )
    signing_command.add_arguments(
        commands.add_parser(
            "signing-keys",
            help="list and rotate the keys that sign generations",
            allow_abbrev=False,
        )
    )
    witness_command.add_arguments(
        commands.add_parser(
            "witness",
            help="cosign the checkpoints of transparency logs",
            description=witness_command.DESCRIPTION,
            epilog=witness_command.EPILOG,
            allow_abbrev=False,
        )
    )
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot encode must not raise after the work is done.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parsed = parser.parse_args(arguments)
    try:
        _require_utf8(parsed)
        return _COMMANDS[parsed.command](parsed)
    except ConfigurationError as error:
        print(f"whence-server: {error}", file=sys.stderr)
        return 2
    except (JournalError, LineageError) as error:
        print(f"whence-server: {error}", file=sys.stderr)
        return 1


def _add_place(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--data-dir", type=Path, metavar="DIR")
    place.add_argument("--journal", metavar="URL", help=_URL_HELP)


def _add_retention_commands(commands: "_Commands") -> None:
    compact = commands.add_parser(
        "compact",
        help="give the space of deleted content back to the file system, while a server runs",
        description="Move pages from the end of the journal's database into free ones, and cut the "
        "file, in short steps beside a running server. A database that an earlier version made is "
        "rewritten instead, which needs the server stopped and as much free space as it keeps. In "
        "PostgreSQL, VACUUM makes the space of deleted rows reusable, and the tables of keys are "
        "written anew.",
        epilog=_COMPACT_EPILOG,
        allow_abbrev=False,
    )
    _add_place(compact)
    compact.add_argument(
        "--full",
        action="store_true",
        help="with --journal: write all tables anew, which gives the space back to the file "
        "system; no server may use the database",
    )
    retention = commands.add_parser(
        "retention",
        help="show what the settings of retention would delete",
        description="Show what retention would delete now. Nothing is changed; a server may run. "
        "The settings and their variables are those of `whence-server serve`.",
        epilog=_RETENTION_EPILOG,
        allow_abbrev=False,
    )
    _add_place(retention)
    retention.add_argument(
        "--dry-run",
        action="store_true",
        required=True,
        help="show, and change nothing; needed, because only a server deletes",
    )
    key_command.add_key_arguments(retention)
    config.add_retention_arguments(retention)


def _require_utf8(parsed: argparse.Namespace) -> None:
    """Raise ConfigurationError for a name that is not UTF-8: libraries that load models need it.

    Names of text files may be any bytes.
    """
    given = vars(parsed).copy()
    if parsed.command == "serve":
        given |= {name: it for name, it in copy_environment().items() if name.startswith("WHENCE_")}
    for name in _MAY_BE_ANY_BYTES:
        given.pop(name, None)
    for name, value in given.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, str | Path) and get_undecodable_bytes(one):
                raise ConfigurationError(
                    f"{name} {format_path(one)}: the name is not UTF-8; rename it, or give a "
                    "link with a UTF-8 name"
                )


def _serve(parsed: argparse.Namespace) -> int:
    from whence_server.launch import serve

    settings = config.make_serve_config(parsed, copy_environment())
    logs.configure(settings.log_level, settings.log_format)
    return asyncio.run(serve(settings))


def _train(parsed: argparse.Namespace) -> int:
    given = config.read_train_settings(parsed)
    if importlib.util.find_spec("accelerate") is None:
        raise ConfigurationError("accelerate is not installed: pip install 'whence[server,train]'")
    use_passive_waiting()
    from whence_server.training.train.command import run

    return run(given)


def _verify(parsed: argparse.Namespace) -> int:
    verify, rebuild = _find_verification(parsed)
    with key_command.open_keys_to_verify(parsed, copy_environment()) as keys:
        report = verify(keys)
        if parsed.rebuild and not report.intact and report.chain_intact:
            _print_report(report)
            print(f"{rebuild()} rows were rebuilt from the entries")
            report = verify(keys)
    _print_report(report)
    if report.nothing:
        return 3
    return 0 if report.intact else 1


def _find_verification(
    parsed: argparse.Namespace,
) -> "tuple[Callable[[KeysToVerify | None], VerifyReport], Callable[[], int]]":
    """Return the functions that verify a journal, and that rebuild its rows."""
    from whence_server.journal.tree_verify import read_checkpoints

    known = read_checkpoints(parsed.checkpoints)
    if parsed.journal is None:
        from whence_server.journal.rebuild import rebuild_journal
        from whence_server.journal.verify import verify_journal

        data_dir = parsed.data_dir
        return partial(verify_journal, data_dir, known=known), partial(rebuild_journal, data_dir)
    url = _read_url(parsed)
    from whence_server.journal.postgres.verify import rebuild_database, verify_database

    return partial(verify_database, url, known=known), partial(rebuild_database, url)


def _compact(parsed: argparse.Namespace) -> int:
    if parsed.journal is not None:
        url = _read_url(parsed)
        from whence_server.journal.postgres.retention import compact_database

        for line in compact_database(url, full=parsed.full).describe():
            print(line)
        return 0
    if parsed.full:
        raise ConfigurationError("--full works with --journal")
    from whence_server.journal.retention.compact import compact_journal

    report = compact_journal(parsed.data_dir)
    for line in report.describe():
        print(line)
    return 0 if report.is_complete else 1


def _plan_retention(parsed: argparse.Namespace) -> int:
    policy = config.read_retention_policy(parsed, copy_environment())
    with key_command.open_keys_to_verify(parsed, copy_environment()) as keys:
        if parsed.journal is None:
            from whence_server.journal.retention.dry_run import plan_retention

            print(*plan_retention(parsed.data_dir, policy, keys).describe(), sep="\n")
            return 0
        url = _read_url(parsed)
        from whence_server.journal.postgres.retention import plan_database

        for log_id, plan in plan_database(url, policy, keys).items():
            print(f"log {log_id}:", *plan.describe(), sep="\n  ")
    return 0


def _read_url(parsed: argparse.Namespace) -> str:
    """Return the URL of --journal.

    Raises:
        ConfigurationError: it is malformed, or the library for the database is not installed.
    """
    from whence_server.journal.open_store import import_postgres

    try:
        url = parse_journal_url(parsed.journal)
    except ValueError as error:
        raise ConfigurationError(f"--journal: {error}") from None
    import_postgres()
    return url.text


def _copy(parsed: argparse.Namespace) -> int:
    from whence_server.journal.moving.command import run

    return run(parsed)


def _print_report(report: "VerifyReport") -> None:
    for note in report.notes:
        print(f"note: {note}")
    for finding in report.findings:
        print(finding, file=sys.stderr)
    if report.nothing:
        print("nothing to verify: the journal has no entries")
    elif report.intact:
        print(
            f"{report.num_entries} entries of {report.num_generations} generations, intact; "
            f"the chain's head is {report.head}"
        )
    else:
        chain = "the chain is intact" if report.chain_intact else "the chain is broken"
        print(
            f"not intact: {report.num_findings} findings; {chain}, "
            f"{report.num_entries} entries were found in order",
            file=sys.stderr,
        )


def _run_witness(parsed: argparse.Namespace) -> int:
    from whence_server.proof.witness.command import run

    return run(parsed)


def _manage_keys(parsed: argparse.Namespace) -> int:
    return key_command.run(parsed, copy_environment())


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "backup": _copy,
    "compact": _compact,
    "attest": attest_command.run,
    "key": _manage_keys,
    "migrate": _copy,
    "restore": _copy,
    "retention": _plan_retention,
    "serve": _serve,
    "signing-keys": signing_command.run,
    "token": token_command.run,
    "train": _train,
    "verify": _verify,
    "verify-generation": verify_generation.run,
    "verify-model": verify_command.run,
    "weigh-heads": weigh_heads.run,
    "witness": _run_witness,
}

if __name__ == "__main__":
    sys.exit(main())
