"""`whence log`: checkpoints and proofs of the server's transparency log, checked here."""

import argparse
import sys
from pathlib import Path
from typing import Any

from whence.cli.connection import connect
from whence.cli.exits import EXITS, FAILED, OK, UsageError
from whence.cli.files import read_file, replace_file
from whence.cli.log_statements import add_server_keys, check_statement, read_server_keys
from whence.cli.timestamps import add_time, add_timestamp, run_time, run_timestamp
from whence.cli.verify_bundle import parse_quorum
from whence.client import Client
from whence.proof.bundle import is_bundle
from whence.proof.bundle_format import MAX_BYTES
from whence.proof.checkpoints import Checkpoint, VerifiedCheckpoint
from whence.proof.faults import ProofError
from whence.proof.log_check import LogTrust, check_inclusion
from whence.proof.log_growth import check_growth, read_known
from whence.proof.notes import SignedNote
from whence.summary import escape

_EPILOG = f"""\
--log-key is the verifier key of the log, NAME+ID+BASE64, learnt from a trusted place: one that the
server itself tells proves nothing. A proof that does not hold has the exit status {FAILED}.

{EXITS}"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `log` and its own commands to the command line."""
    parser = commands.add_parser("log", help="the transparency log: checkpoints and proofs")
    actions = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, run: Any, meaning: str, *, asks_server: bool = True
    ) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(
            name,
            parents=[common] if asks_server else [],
            help=meaning,
            description=f"{meaning[0].upper()}{meaning[1:]}.",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.set_defaults(run=run)
        return action

    add("key", run_key, "print the log's verifier key, as the server tells it")
    newest = add("checkpoint", run_checkpoint, "print the newest published checkpoint")
    _add_trust(newest, required=False)
    proving = add("prove", run_prove, "check that a generation's statement is in the log")
    proving.add_argument("generation_id", metavar="ID")
    add_server_keys(proving)
    _add_trust(proving, required=True)
    growing = add("consistent", run_consistent, "check that the log continues a kept checkpoint")
    growing.add_argument(
        "file", type=Path, metavar="FILE", help="the kept checkpoint, or a bundle that has one"
    )
    _add_trust(growing, required=True)
    growing.add_argument(
        "--update",
        action="store_true",
        help="keep the newest checkpoint in FILE from now on, if it continues the kept one; FILE "
        "must not be a bundle",
    )

    meaning = "have an authority stamp a checkpoint (RFC 3161)"
    add_timestamp(add("timestamp", run_timestamp, meaning, asks_server=False))
    meaning = "check when an authority has seen a checkpoint"
    add_time(add("time", run_time, meaning, asks_server=False))


def _add_trust(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--log-key", required=required, metavar="VKEY", help="verifier key of the log"
    )
    parser.add_argument(
        "--witness",
        dest="witnesses",
        action="append",
        default=[],
        metavar="VKEY",
        help="verifier key of a witness that must have cosigned the checkpoint; may be repeated, "
        "and all must have, unless --witness-quorum says how many",
    )
    parser.add_argument(
        "--witness-quorum",
        type=parse_quorum,
        metavar="N",
        help="number of the witnesses that must have cosigned",
    )


def run_key(arguments: argparse.Namespace) -> int:
    """Print the log's verifier key."""
    with connect(arguments) as client:
        print(escape(client.transparency_log.checkpoint().verifier_key))
    return OK


def run_checkpoint(arguments: argparse.Namespace) -> int:
    """Print the newest checkpoint, checked if the log's key is given.

    Raises:
        UsageError: a key is none, or a witness is given without the log's key.
    """
    trust = _read_trust(arguments)
    with connect(arguments) as client:
        note = client.transparency_log.checkpoint().checkpoint
    if trust is not None:
        try:
            trust.verify(note)
        except ProofError as error:
            return _refuse(str(error))
    sys.stdout.buffer.write(note)
    return OK


def run_prove(arguments: argparse.Namespace) -> int:
    """Check that a generation's statement is in the log.

    Raises:
        UsageError: a key is none, or the generation has no statement.
    """
    import hashlib

    trust, keys = _require_trust(arguments), read_server_keys(arguments)
    generation_id: str = arguments.generation_id
    with connect(arguments) as client:
        envelope = client.generations.get(generation_id).finished.statement.envelope
        if not envelope:
            raise UsageError(f"generation {generation_id} still runs, or has no signed statement")
        digest = hashlib.sha256(envelope).digest()
        proof = client.transparency_log.inclusion(digest)
    try:
        signed = check_statement(envelope, generation_id, keys)
        verified = trust.verify(proof.checkpoint)
        found = check_inclusion(envelope, proof.leaf_index, proof.path, verified, trust.log.name)
    except ProofError as error:
        return _refuse(str(error))
    print(f"ok     {escape(found)}\n{escape(signed)}")
    return OK


def run_consistent(arguments: argparse.Namespace) -> int:
    """Check that the log continues a kept checkpoint, and keep the newest one if asked to.

    Raises:
        UsageError: a key is none, or the file is no checkpoint of the log or cannot be written.
    """
    trust = _require_trust(arguments)
    path: Path = arguments.file
    data = read_file(path, MAX_BYTES)
    if arguments.update and is_bundle(data):
        raise UsageError(
            f"{path}: is a bundle, which --update would replace: keep a checkpoint in a file of "
            "its own (whence log checkpoint > FILE)"
        )
    try:
        known = read_known(data, trust.log)
    except ProofError as error:
        raise UsageError(f"{path}: {error}") from None
    with connect(arguments) as client:
        note, nodes = _fetch_growth(client, known)
    try:
        verified = trust.verify(note)
        check_growth(known, verified.checkpoint, nodes)
    except ProofError as error:
        return _refuse(str(error))
    print(f"ok     {escape(_describe_growth(known, verified))}")
    if arguments.update:
        replace_file(path, note)
    return OK


def _fetch_growth(client: Client, known: Checkpoint) -> tuple[bytes, list[bytes]]:
    """Return the newest checkpoint, and the proof that its log continues the known one."""
    newest = client.transparency_log.checkpoint().checkpoint
    try:
        size = Checkpoint.parse(SignedNote.parse(newest).text).size
    except ProofError:
        return newest, []
    if size < known.size:
        # No proof exists: the check says what that means.
        return newest, []
    proof = client.transparency_log.consistency(known.size)
    return proof.checkpoint, list(proof.path)


def _describe_growth(known: Checkpoint, verified: VerifiedCheckpoint) -> str:
    newer = verified.checkpoint
    cosigned = ", ".join(sorted(verified.witnesses)) or "nobody"
    grown = newer.size - known.size
    return (
        f"the log {newer.origin} of {newer.size} entries continues the kept one of {known.size}: "
        f"{grown:,} more, cosigned by {cosigned}"
    )


def _read_trust(arguments: argparse.Namespace) -> LogTrust | None:
    if arguments.log_key is None:
        if arguments.witnesses or arguments.witness_quorum:
            raise UsageError("--witness and --witness-quorum need --log-key: give the log's key")
        return None
    return _require_trust(arguments)


def _require_trust(arguments: argparse.Namespace) -> LogTrust:
    try:
        return LogTrust.parse(arguments.log_key, arguments.witnesses, arguments.witness_quorum)
    except ProofError as error:
        raise UsageError(str(error)) from None


def _refuse(fault: str) -> int:
    print(f"FAULT  {escape(fault)}")
    return FAILED
