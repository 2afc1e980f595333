"""`whence log timestamp` and `whence log time`: when an authority has seen a checkpoint."""

import argparse
from pathlib import Path
from typing import overload

from whence.cli.authority import ask_authority
from whence.cli.exits import FAILED, OK, UsageError
from whence.cli.files import read_file, replace_file
from whence.proof.bundle_format import MAX_BYTES
from whence.proof.checkpoints import Checkpoint, verify_checkpoint
from whence.proof.faults import ProofError
from whence.proof.log_growth import find_note
from whence.proof.notes import SignedNote, VerifierKey
from whence.proof.timestamps import MAX_ANSWER_BYTES, check_timestamp, make_query
from whence.summary import escape


def add_timestamp(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `whence log timestamp`."""
    _add_common(parser, needs_key=False)
    parser.add_argument(
        "--authority", required=True, metavar="URL", help="URL of the authority, http or https"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write (default: FILE.tsr)"
    )


def add_time(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `whence log time`."""
    _add_common(parser, needs_key=True)
    parser.add_argument(
        "--timestamp",
        type=Path,
        metavar="TSR",
        help="the authority's answer, as `whence log timestamp` wrote it (default: FILE.tsr)",
    )


def _add_common(parser: argparse.ArgumentParser, *, needs_key: bool) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a checkpoint, or a bundle that has one"
    )
    parser.add_argument(
        "--log-key",
        required=needs_key,
        metavar="VKEY",
        help="verifier key of the log that must have signed the checkpoint",
    )
    parser.add_argument(
        "--authority-root",
        dest="roots",
        type=Path,
        action="append",
        required=True,
        metavar="PEM",
        help="certificate of the authority's root that you trust; may be repeated",
    )


def run_timestamp(arguments: argparse.Namespace) -> int:
    """Have an authority stamp a checkpoint, check the answer, and write it to a file.

    Raises:
        UsageError: a file cannot be read or written, or the authority does not answer.
    """
    key = _read_log_key(arguments.log_key)
    note, roots = _read_note(arguments.file), _read_roots(arguments.roots)
    try:
        if key is not None:
            verify_checkpoint(note, key)
    except ProofError as error:
        return _refuse(error)
    try:
        query = make_query(note)
    except ProofError as error:
        raise UsageError(str(error)) from None
    answer = ask_authority(arguments.authority, query.data)
    try:
        seen = check_timestamp(note, answer, roots, query)
    except ProofError as error:
        return _refuse(error)
    path: Path = arguments.output or _name(arguments.file)
    replace_file(path, answer)
    print(f"ok     {_describe(note)} was seen at {seen:%Y-%m-%dT%H:%M:%SZ}: {escape(str(path))}")
    if key is None:
        print("-      the log's signature was not checked: name its key with --log-key")
    return OK


def run_time(arguments: argparse.Namespace) -> int:
    """Check the timestamp of a checkpoint, and print the time.

    Raises:
        UsageError: a file cannot be read.
    """
    key = _read_log_key(arguments.log_key)
    note, roots = _read_note(arguments.file), _read_roots(arguments.roots)
    path: Path = arguments.timestamp or _name(arguments.file)
    answer = read_file(path, MAX_ANSWER_BYTES)
    try:
        # Anybody writes a note of any log, and an authority stamps whatever bytes it is sent.
        verify_checkpoint(note, key)
        seen = check_timestamp(note, answer, roots)
    except ProofError as error:
        return _refuse(error)
    print(f"ok     {_describe(note)} was seen at {seen:%Y-%m-%dT%H:%M:%SZ}")
    return OK


def _refuse(error: ProofError) -> int:
    print(f"FAULT  {escape(str(error))}")
    return FAILED


@overload
def _read_log_key(text: str) -> VerifierKey: ...
@overload
def _read_log_key(text: None) -> None: ...
def _read_log_key(text: str | None) -> VerifierKey | None:
    try:
        return None if text is None else VerifierKey.parse(text)
    except ProofError as error:
        raise UsageError(str(error)) from None


def _read_note(path: Path) -> bytes:
    """Return the checkpoint of a file, which is well formed."""
    try:
        note = find_note(read_file(path, MAX_BYTES))
        Checkpoint.parse(SignedNote.parse(note).text)
    except ProofError as error:
        raise UsageError(f"{path}: {error}") from None
    return note


def _read_roots(paths: list[Path]) -> list[bytes]:
    return [read_file(path, MAX_ANSWER_BYTES) for path in paths]


def _name(path: Path) -> Path:
    return path.with_name(f"{path.name}.tsr")


def _describe(note: bytes) -> str:
    checkpoint = Checkpoint.parse(SignedNote.parse(note).text)
    return escape(f"the checkpoint of {checkpoint.size} entries of {checkpoint.origin}")
