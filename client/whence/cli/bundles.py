"""`whence generations export` and `whence keys`: what generations are checked with."""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from whence.bundles import HIDEABLE
from whence.cli.connection import connect
from whence.cli.exits import EXITS, OK, UsageError
from whence.cli.json_lines import describe_message, format_json
from whence.summary import escape

_UINT32 = 2**32


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `whence generations export`."""
    parser.add_argument("generation_id", metavar="ID")
    parser.add_argument(
        "--bundle", type=Path, required=True, metavar="FILE", help="file to write (JSON)"
    )
    parser.add_argument(
        "--hide",
        action="append",
        choices=HIDEABLE,
        default=[],
        help="leave out the prompt, or the text and tokens of the output (for a forced text with "
        "the start, which has them); may be repeated. What is hidden keeps its place, as a hash",
    )
    parser.add_argument(
        "--steps",
        type=_parse_steps,
        metavar="A:B",
        help="of the output, show only the steps from A on and before B",
    )
    parser.add_argument(
        "--known",
        type=Path,
        metavar="CHECKPOINT",
        help="checkpoint of the transparency log that somebody has kept, or a bundle that has one: "
        "add the proof that the log continues it, for `verify-bundle --checkpoint`",
    )


def run_export(arguments: argparse.Namespace) -> int:
    """Write a generation's bundle to a file, whole or not at all.

    Raises:
        UsageError: the file cannot be written, or the arguments contradict.
    """
    if arguments.steps is not None and "text" in arguments.hide:
        raise UsageError("--steps shows steps, and --hide text hides them all: give one of them")
    known = 0 if arguments.known is None else _read_size(arguments.known)
    path: Path = arguments.bundle
    try:
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    except OSError as error:
        raise UsageError(f"--bundle {path}: cannot be written ({error.strerror})") from None
    num_bytes = 0
    try:
        with connect(arguments) as client, os.fdopen(descriptor, "wb") as file:
            pieces = client.generations.bundle(
                arguments.generation_id,
                hide=arguments.hide,
                steps=arguments.steps,
                known_log_size=known,
            )
            for piece in pieces:
                num_bytes += file.write(piece)
        Path(partial).replace(path)
    except OSError as error:
        raise UsageError(f"--bundle {path}: cannot be written ({error.strerror})") from None
    finally:
        Path(partial).unlink(missing_ok=True)
    print(f"wrote {num_bytes:,} bytes to {escape(str(path))}")
    return OK


def _read_size(path: Path) -> int:
    """Return the number of entries of the log in a checkpoint's file."""
    from whence.proof.checkpoints import Checkpoint
    from whence.proof.faults import ProofError
    from whence.proof.log_growth import find_note
    from whence.proof.notes import SignedNote

    try:
        return Checkpoint.parse(SignedNote.parse(find_note(path.read_bytes())).text).size
    except OSError as error:
        raise UsageError(f"--known {path}: cannot be read ({error.strerror})") from None
    except ProofError as error:
        raise UsageError(f"--known {path}: {error}") from None


def add_keys_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `keys` to the command line."""
    parser = commands.add_parser(
        "keys",
        parents=[common],
        help="the server's signing keys",
        description="List the keys with which the server signs generations, oldest first. Keep a "
        "public key where the server cannot change it, before you need it.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--pem", action="store_true", help="print the present public key as PEM")
    forms.add_argument("--json", action="store_true", help="print one JSON object on each line")
    parser.set_defaults(run=run_keys)


def run_keys(arguments: argparse.Namespace) -> int:
    """Print the server's signing keys.

    Raises:
        UsageError: --pem was given, and the server does not sign.
    """
    with connect(arguments) as client:
        keys = client.signing_keys()
    if arguments.pem:
        active = [key for key in keys if key.active]
        if not active:
            raise UsageError("the server does not sign: it has --signing off")
        print(active[-1].public_key_pem, end="")
        return OK
    for key in keys:
        if arguments.json:
            print(format_json(describe_message(key)))
        else:
            note = "  signs now" if key.active else ""
            if key.HasField("stolen_since"):
                note = f"  stolen since {key.stolen_since.ToJsonString()}"
            print(f"{escape(key.key_id)}{note}")
    return OK


def _parse_steps(text: str) -> range:
    begin, colon, end = text.partition(":")
    numbers = [part for part in (begin, end) if part.isascii() and part.isdecimal()]
    if not colon or len(numbers) != 2 or not int(begin) <= int(end) < _UINT32:
        raise argparse.ArgumentTypeError("expected A:B, with whole numbers and A not above B")
    return range(int(begin), int(end))
