"""The commands `whence-server signing-keys list` and `rotate`."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from whence_server.domain.errors import ConfigurationError

EPILOG = "exit status: 0 done; 2 an argument or a key cannot be used"
_DEFAULT_OVERLAP_S = 3_600.0
# A running server looks for a new key once a second, and signs with the old one until then.
_MIN_OVERLAP_S, _MAX_OVERLAP_S = 10.0, 30 * 86_400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments."""
    commands = parser.add_subparsers(dest="signing_keys_command", required=True)
    listing = commands.add_parser(
        "list",
        help="list the keys that sign generations, oldest first",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    rotate = commands.add_parser(
        "rotate",
        help="replace the signing key by a new one",
        description="Make a new signing key. The old key signs it, so that whoever trusts the old "
        "one can check what the new one signs; then the old private key is overwritten. A running "
        "server signs with the new key within a second of its next generation's end.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    for command in (listing, rotate):
        command.add_argument("--data-dir", type=Path, required=True, metavar="DIR")
        command.add_argument(
            "--signing-key",
            type=Path,
            metavar="FILE",
            help="private key that signs now (default: signing-key.pem in --data-dir)",
        )
    rotate.add_argument(
        "--overlap",
        type=_parse_overlap,
        metavar="S",
        help="seconds for which signatures of the old key still count, as a running server may "
        "need a moment, from 10 (default: 3600); not with --stolen",
    )
    rotate.add_argument(
        "--stolen",
        type=_parse_time,
        nargs="?",
        const=True,
        metavar="SINCE",
        help="the old key was stolen (at this time, as 2027-01-31T00:00:00Z; default: now): the "
        "new key begins a new list, so that neither vouches for the other, and the server tells "
        "the time of the theft with its keys",
    )


def run(parsed: argparse.Namespace) -> int:
    """Run a subcommand; return the exit status.

    Raises:
        ConfigurationError: an argument or a key cannot be used.
    """
    from whence_server.proof.key_place import KeyPlace
    from whence_server.proof.signing_keys import KEY_NAME, LIST_NAME, read_list, rotate
    from whence_server.proof.stolen_keys import read_stolen

    list_path = parsed.data_dir / LIST_NAME
    key_path = parsed.signing_key or parsed.data_dir / KEY_NAME
    if not list_path.is_file():
        raise ConfigurationError(
            f"there is no list of signing keys {list_path}: the first start of a server makes one"
        )
    if parsed.signing_keys_command == "rotate":
        since = datetime.now(UTC) if parsed.stolen is True else parsed.stolen
        if since is not None and parsed.overlap is not None:
            raise ConfigurationError(
                "--overlap does not go with --stolen: signatures of a stolen key count until the "
                "theft alone"
            )
        overlap_s = _DEFAULT_OVERLAP_S if parsed.overlap is None else parsed.overlap
        entry = rotate(key_path, list_path, overlap_s, since)
        print(f"{entry.key.key_id}  signs from now on")
        if since is not None:
            print("give this key to those who check: nothing leads to it from the stolen one")
        return 0
    place = KeyPlace(key_path, list_path)
    listed = read_list(place.list)
    for stolen in read_stolen(place.list):
        *before, last = stolen.parse()
        for entry in before:
            print(f"{entry.key.key_id}  from {entry.not_before:%Y-%m-%dT%H:%M:%SZ}")
        print(f"{last.key.key_id}  stolen since {stolen.since:%Y-%m-%dT%H:%M:%SZ}")
    for number, (_, entry) in enumerate(listed, 1):
        note = "  signs now" if number == len(listed) else ""
        print(f"{entry.key.key_id}  from {entry.not_before:%Y-%m-%dT%H:%M:%SZ}{note}")
    return 0


def _parse_time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or moment > datetime.now(UTC):
        raise argparse.ArgumentTypeError("expected a past time in UTC, as 2027-01-31T00:00:00Z")
    return moment.astimezone(UTC)


def _parse_overlap(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not _MIN_OVERLAP_S <= seconds <= _MAX_OVERLAP_S:
        raise argparse.ArgumentTypeError("expected seconds, from 10 to 2592000 (30 days)")
    return seconds
