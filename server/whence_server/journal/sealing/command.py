"""The commands `whence-server key new`, `rotate`, `list` and `prune`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.key_sources import KeyScheme, KeySource, parse_key_source

if TYPE_CHECKING:
    from whence_server.journal.sealing.content_check import KeysToVerify

EPILOG = """exit status: 0 done; 1 the database of keys cannot be written at present; 2 an argument
or a key cannot be used"""


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
        parser_of_keys.add_argument(
            "--data-dir", type=Path, metavar="DIR", help="directory of the journal"
        )
    prune = commands.add_parser(
        "prune",
        help="destroy keys of deleted generations that an older database of keys still has",
        description="Destroy the keys of generations that the journal has deleted. It is needed "
        "after the database of keys was restored from a copy. No server may use the journal.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    prune.add_argument("--data-dir", type=Path, required=True, metavar="DIR")
    prune.add_argument(
        "--unknown",
        action="store_true",
        help="destroy keys too whose generations have no trace in the journal, because retention "
        "removed it; only if the journal is the newest one, and no older copy",
    )
    _add_database_argument(prune)


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
        type=Path,
        metavar="FILE",
        help="database of the keys of generations (default: keys.db in --data-dir)",
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
        case _:
            _list_keys(parsed, environment)
    return 0


def open_keys_to_verify(
    parsed: argparse.Namespace, environment: Mapping[str, str]
) -> "KeysToVerify | None":
    """Open the keys of a journal to verify; None if none are given.

    Raises:
        ConfigurationError: a key cannot be used.
    """
    from whence_server.journal.sealing.content_check import KeysToVerify
    from whence_server.journal.sealing.masters import Masters

    if parsed.journal_key is None:
        if parsed.journal_keys is not None:
            raise ConfigurationError("--journal-keys is set without --journal-key")
        return None
    masters = Masters(parsed.journal_key, environment)
    return KeysToVerify(_find_database(parsed), masters)


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
    from whence_server.journal.sealing.key_database import KeyDatabase
    from whence_server.journal.sealing.masters import Masters
    from whence_server.journal.sealing.rotation import rotate

    masters = Masters(parsed.journal_key, environment)
    database = KeyDatabase(_find_database(parsed))
    try:
        number = rotate(database, masters)
    finally:
        database.close()
    print(
        f"{number} keys were rewrapped; {masters.newest.id} wraps all {database.path} has, and no "
        "other master key is needed"
    )


def _list_keys(parsed: argparse.Namespace, environment: Mapping[str, str]) -> None:
    from whence_server.journal.sealing.key_database import KeyDatabase
    from whence_server.journal.sealing.keyring import MASTER
    from whence_server.journal.sealing.masters import Masters

    given = [] if parsed.journal_key is None else Masters(parsed.journal_key, environment).ids
    database = KeyDatabase(_find_database(parsed), read_only=True)
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
    from whence_server.journal.sealing.key_database import KeyDatabase
    from whence_server.journal.sealing.pruning import prune

    database = KeyDatabase(_find_database(parsed))
    try:
        pruned = prune(database, parsed.data_dir, also_unknown=parsed.unknown)
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


def _find_database(parsed: argparse.Namespace) -> Path:
    """Return the path of the database of keys.

    Raises:
        ConfigurationError: it is not named, or missing.
    """
    from whence_server.journal.sealing.opening import find_key_database

    if parsed.data_dir is None and parsed.journal_keys is None:
        raise ConfigurationError("give --data-dir, or --journal-keys")
    path = find_key_database(parsed.data_dir or Path(), parsed.journal_keys)
    if not path.is_file():
        raise ConfigurationError(f"there is no database of keys {path}")
    return path
