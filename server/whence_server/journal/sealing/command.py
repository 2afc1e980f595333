"""The commands `whence-server key new`, `rotate`, `list`, `prune` and `copy`."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.journal_url import JournalUrl, parse_place
from whence_server.domain.key_sources import KeyScheme, KeySource, parse_key_source

if TYPE_CHECKING:
    from whence_server.journal.sealing.content_check import KeysToVerify
    from whence_server.journal.sealing.key_store import KeyStore

EPILOG = """exit status: 0 done; 1 the database of keys cannot be written at present; 2 an argument
or a key cannot be used"""
_PLACE = "a file, or postgresql://USER@HOST:PORT/DATABASE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments."""
    commands = parser.add_subparsers(dest="key_command", required=True)
    new = commands.add_parser(
        "new",
        help="put a new master key on the first line of a file",
        description="Make a random master key of 256 bits, and put it on the first line of a file. "
        "Older keys stay below it until `whence-server key rotate` has ended. The key is not "
        "printed.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    new.add_argument(
        "--journal-key",
        type=_parse_source,
        required=True,
        metavar="FILE",
        help="file of master keys; it is made with mode 0600 if it is missing",
    )
    rotate = commands.add_parser(
        "rotate",
        help="wrap the keys of all generations by the newest master key",
        description="Wrap the keys of all generations by the first master key that is given. No "
        "entry of the journal changes, and a server may be using it. The other master keys are not "
        "needed afterwards.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    listing = commands.add_parser(
        "list",
        help="list the master keys by id, with the number of keys that each wraps",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    for parser_of_keys in (rotate, listing):
        add_key_arguments(parser_of_keys, required=parser_of_keys is rotate)
        _add_journal_arguments(parser_of_keys)
    prune = commands.add_parser(
        "prune",
        help="destroy keys of deleted generations that an older database of keys still has",
        description="Destroy the keys of generations that the journal has deleted. It is needed "
        "after the database of keys was restored from a copy. No server may use a journal in "
        "--data-dir.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    _add_journal_arguments(prune, required=True)
    prune.add_argument(
        "--unknown",
        action="store_true",
        help="destroy keys too whose generations have no trace in the journal, because retention "
        "removed it; only if the journal is the newest one, and no older copy; stop its servers",
    )
    _add_database_argument(prune)
    copy = commands.add_parser(
        "copy",
        help="copy the wrapped keys of generations to another database of keys",
        description="Copy the wrapped keys to a database that has none: for a backup, or after a "
        "migration of the journal. No master key is needed. No server may make keys meanwhile that "
        "the copy must have.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    for flag, field in (("--from", "source"), ("--to", "target")):
        copy.add_argument(flag, dest=field, required=True, metavar="FILE_OR_URL", help=_PLACE)


def _add_journal_arguments(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    place = parser.add_mutually_exclusive_group(required=required)
    place.add_argument("--data-dir", type=Path, metavar="DIR", help="directory of the journal")
    place.add_argument("--journal", metavar="URL", help="database of the journal")


def add_key_arguments(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add the flags that name the keys of a journal."""
    parser.add_argument(
        "--journal-key",
        type=_parse_source,
        required=required,
        metavar="PLACE",
        help="place of the master keys, the newest first: FILE, file:FILE, env:NAME or "
        "exec:COMMAND",
    )
    _add_database_argument(parser)


def _add_database_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--journal-keys",
        metavar="FILE_OR_URL",
        help="database of the keys of generations (default: keys.db in --data-dir, or the database "
        "of --journal)",
    )


def _parse_source(text: str) -> KeySource:
    try:
        return parse_key_source(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def run(parsed: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run a subcommand; return the exit status.

    Raises:
        ConfigurationError: an argument or a key cannot be used.
        JournalUnwritableError: the database of keys cannot be written at present.
    """
    match parsed.key_command:
        case "new":
            _make_key(parsed.journal_key)
        case "rotate":
            _rotate(parsed, environment)
        case "prune":
            _prune(parsed)
        case "copy":
            _copy(parsed)
        case _:
            _list_keys(parsed, environment)
    return 0


@contextmanager
def open_keys_to_verify(
    parsed: argparse.Namespace, environment: Mapping[str, str]
) -> "Iterator[KeysToVerify | None]":
    """Yield the keys of a journal to verify; None if none are given.

    Raises:
        ConfigurationError: a key cannot be used.
    """
    from whence_server.journal.sealing.content_check import KeysToVerify
    from whence_server.journal.sealing.masters import Masters

    if parsed.journal_key is None:
        if parsed.journal_keys is not None:
            raise ConfigurationError("--journal-keys is set without --journal-key")
        yield None
        return
    masters = Masters(parsed.journal_key, environment)
    with closing(_open_database(parsed, read_only=True)) as database:
        yield KeysToVerify(database, masters)


def _make_key(source: KeySource) -> None:
    from whence_server.journal.sealing.key_file import add_master_key

    if source.scheme is not KeyScheme.FILE:
        raise ConfigurationError(
            f"--journal-key {source}: `key new` writes a file; for another place, make a key in a "
            "file and move it there"
        )
    path = Path(source.place).expanduser()
    print(f"{path}: new master key {add_master_key(path).id}")


def _rotate(parsed: argparse.Namespace, environment: Mapping[str, str]) -> None:
    from whence_server.journal.sealing.masters import Masters
    from whence_server.journal.sealing.rotation import rotate

    masters = Masters(parsed.journal_key, environment)
    database = _open_database(parsed)
    try:
        number = rotate(database, masters)
    finally:
        database.close()
    print(
        f"{number} keys were rewrapped; {masters.newest.id} wraps all keys in {database.name}, and "
        "no other master key is needed"
    )


def _list_keys(parsed: argparse.Namespace, environment: Mapping[str, str]) -> None:
    from whence_server.journal.sealing.keyring import MASTER
    from whence_server.journal.sealing.masters import Masters

    given = [] if parsed.journal_key is None else Masters(parsed.journal_key, environment).ids
    database = _open_database(parsed, read_only=True)
    try:
        counts = database.count_by_master()
        current = (database.read_fact(MASTER) or b"").decode()
    finally:
        database.close()
    for master_id in dict.fromkeys((*given, current, *sorted(counts))):
        notes = ["wraps new keys"] if master_id == current else []
        if parsed.journal_key is not None and master_id not in given:
            notes.append("not given by --journal-key")
        remarks = f"  ({', '.join(notes)})" if notes else ""
        print(f"{master_id}  {counts.get(master_id, 0)} keys of generations{remarks}")


def _prune(parsed: argparse.Namespace) -> None:
    from whence_server.journal.sealing.pruning import prune

    database = _open_database(parsed)
    try:
        journal = parsed.data_dir or _parse_place("--journal", parsed.journal)
        pruned = prune(database, journal, also_unknown=parsed.unknown)
    finally:
        database.close()
    print(f"{pruned.num_deleted} keys of deleted generations were destroyed")
    if pruned.num_unknown:
        print(
            f"{pruned.num_unknown} keys of generations without a trace in the journal "
            + (
                "were destroyed"
                if parsed.unknown
                else "are left: --unknown destroys them, if the journal is the newest one"
            )
        )


def _copy(parsed: argparse.Namespace) -> None:
    from whence_server.journal.sealing.key_copies import copy_keys

    source, target = _parse_place("--from", parsed.source), _parse_place("--to", parsed.target)
    print(f"{copy_keys(source, target)} keys of generations were copied")


def _open_database(parsed: argparse.Namespace, *, read_only: bool = False) -> "KeyStore":
    """Open the database of keys that the arguments name.

    Raises:
        ConfigurationError: it is not named, or missing.
    """
    from whence_server.journal.sealing.key_place import find_keys, open_keys

    journal, place = parsed.journal, parsed.journal_keys
    url = None if journal is None else _parse_place("--journal", journal)
    if isinstance(url, Path):
        raise ConfigurationError("--journal: expected postgresql://USER@HOST:PORT/DATABASE")
    given = None if place is None else _parse_place("--journal-keys", place)
    return open_keys(find_keys(parsed.data_dir, url, given), read_only=read_only)


def _parse_place(flag: str, text: str) -> Path | JournalUrl:
    try:
        return parse_place(text)
    except ValueError as error:
        raise ConfigurationError(f"{flag}: {error}") from None
