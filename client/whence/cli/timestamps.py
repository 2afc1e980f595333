"""`whence log timestamp` and `whence log time`: when an authority has seen a checkpoint."""

import argparse
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from whence.cli.exits import FAILED, OK, UsageError
from whence.proof.bundle_format import MAX_BYTES
from whence.proof.checkpoints import Checkpoint
from whence.proof.faults import ProofError
from whence.proof.log_growth import find_note
from whence.proof.notes import SignedNote
from whence.proof.timestamps import (
    ANSWER_TYPE,
    MAX_ANSWER_BYTES,
    QUERY_TYPE,
    check_timestamp,
    make_query,
)
from whence.summary import escape

_TIMEOUT_S = 30.0


def add_timestamp(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `whence log timestamp`."""
    _add_common(parser)
    parser.add_argument(
        "--authority", required=True, metavar="URL", help="URL of the authority, http or https"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write (default: FILE.tsr)"
    )


def add_time(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `whence log time`."""
    _add_common(parser)
    parser.add_argument(
        "--timestamp",
        type=Path,
        metavar="TSR",
        help="the authority's answer, as `whence log timestamp` wrote it (default: FILE.tsr)",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a checkpoint, or a bundle that has one"
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
    note, roots = _read_note(arguments.file), _read_roots(arguments.roots)
    try:
        query = make_query(note)
    except ProofError as error:
        raise UsageError(str(error)) from None
    answer = _ask(arguments.authority, query.data)
    try:
        seen = check_timestamp(note, answer, roots, query)
    except ProofError as error:
        print(f"FAULT  {escape(str(error))}")
        return FAILED
    path: Path = arguments.output or _name(arguments.file)
    try:
        path.write_bytes(answer)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    print(f"ok     {_describe(note)} was seen at {seen:%Y-%m-%dT%H:%M:%SZ}: {escape(str(path))}")
    return OK


def run_time(arguments: argparse.Namespace) -> int:
    """Check the timestamp of a checkpoint, and print the time.

    Raises:
        UsageError: a file cannot be read.
    """
    note, roots = _read_note(arguments.file), _read_roots(arguments.roots)
    path: Path = arguments.timestamp or _name(arguments.file)
    answer = _read(path, MAX_ANSWER_BYTES)
    try:
        seen = check_timestamp(note, answer, roots)
    except ProofError as error:
        print(f"FAULT  {escape(str(error))}")
        return FAILED
    print(f"ok     {_describe(note)} was seen at {seen:%Y-%m-%dT%H:%M:%SZ}")
    return OK


def _ask(url: str, query: bytes) -> bytes:
    """Return an authority's answer."""
    if urlsplit(url).scheme not in {"http", "https"}:
        raise UsageError(f"--authority {url}: expected a URL that begins with http or https")
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked above
        url, query, {"Content-Type": QUERY_TYPE, "Accept": ANSWER_TYPE}
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            found: bytes = answer.read(MAX_ANSWER_BYTES)
    except (OSError, ValueError) as error:
        raise UsageError(f"--authority {url}: does not answer ({error})") from None
    return found


def _read_note(path: Path) -> bytes:
    """Return the checkpoint of a file, which is well formed."""
    try:
        note = find_note(_read(path, MAX_BYTES))
        Checkpoint.parse(SignedNote.parse(note).text)
    except ProofError as error:
        raise UsageError(f"{path}: {error}") from None
    return note


def _read_roots(paths: list[Path]) -> list[bytes]:
    return [_read(path, MAX_ANSWER_BYTES) for path in paths]


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _name(path: Path) -> Path:
    return path.with_name(f"{path.name}.tsr")


def _describe(note: bytes) -> str:
    checkpoint = Checkpoint.parse(SignedNote.parse(note).text)
    return escape(f"the checkpoint of {checkpoint.size} entries of {checkpoint.origin}")
