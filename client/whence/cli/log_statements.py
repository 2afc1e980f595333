"""The statement that `whence log prove` looks for: whose it is, and who has signed it."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from whence.cli.exits import UsageError
from whence.cli.files import read_file
from whence.proof.bundle_format import MAX_BYTES
from whence.proof.envelope import STATEMENT_TYPE, parse_envelope
from whence.proof.faults import ProofError
from whence.proof.key_list import KeySpan, SavedKeys, find_trusted, parse_saved_list
from whence.proof.public_key import PublicKey
from whence.proof.statement import open_statement, parse_statement

_MAX_KEY_BYTES = 64 << 10


def add_server_keys(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name the keys of statements."""
    parser.add_argument(
        "--server-key",
        dest="server_keys",
        type=Path,
        action="append",
        default=[],
        metavar="PUB",
        help="public key of the server that you trust, PEM: check the statement's signature too; "
        "may be repeated, and one suffices",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="LIST",
        help="with --server-key: the server's list of keys as you saved it: rotations count too",
    )


def read_server_keys(arguments: argparse.Namespace) -> Mapping[str, KeySpan]:
    """Return the trusted keys of statements by their ids; none if none are given.

    Raises:
        UsageError: a file cannot be read or is none, or a list is given without a key.
    """
    if arguments.keys is not None and not arguments.server_keys:
        raise UsageError("--keys needs --server-key: give the server's key that you trust")
    try:
        given = [
            PublicKey(read_file(path, _MAX_KEY_BYTES).decode(errors="replace"), str(path))
            for path in arguments.server_keys
        ]
        known = SavedKeys(())
        if arguments.keys is not None:
            known = parse_saved_list(read_file(arguments.keys, MAX_BYTES))
        return find_trusted(given, (), known)
    except ProofError as error:
        raise UsageError(str(error)) from None


def check_statement(envelope: bytes, generation_id: str, keys: Mapping[str, KeySpan]) -> str:
    """Check that an envelope holds the statement about a generation; return the line to print.

    Args:
        envelope: the envelope, as the server told it.
        generation_id: id of the generation that was asked for.
        keys: keys of which one must have signed; none to check no signature.

    Raises:
        ProofError: it is another one's statement or none, or no trusted key has signed it.
    """
    if keys:
        signed = open_statement(envelope, keys)
        statement = signed.statement
        line = f"ok     signed by key {signed.key_id[:16]}, {signed.trust}"
    else:
        parsed = parse_envelope(envelope, STATEMENT_TYPE, "the statement's envelope")
        statement = parse_statement(parsed.payload)
        line = "-      signature not checked: name the server's key with --server-key"
    if statement.generation_id != generation_id:
        raise ProofError(
            f"the server told a statement about generation {statement.generation_id[:80]!r}, not "
            f"about {generation_id!r}"
        )
    return line
