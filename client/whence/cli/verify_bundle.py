"""`whence verify-bundle`: checks a generation with nothing but files.

It imports no gRPC: an auditor needs the client's package and `cryptography` alone.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.proof.bundle_format import MAX_BYTES
from whence.proof.faults import ProofError
from whence.proof.key_list import SavedKeys, parse_saved_list
from whence.proof.verification import Demands, LogKeys, Origin, Report, verify_bundle
from whence.summary import escape, quote

if TYPE_CHECKING:
    from whence.proof.content import Content

VERIFIED, REFUSED, UNUSABLE = 0, 1, 2

EPILOG = """\
exit status:
  0  verified: everything that was checked holds
  1  refused: the last line says what is at fault
  2  a file cannot be read, or a key is none
"""
_DESCRIPTION = (
    "Check a bundle of `whence generations export` without its server: the signature, the entries "
    "and the statement about them. docs/proof.md says what each check proves, and what it cannot."
)
_MOST_WITNESSES = 100
_MARKS = {True: "ok", False: "FAULT", None: "-"}


def add_command(commands: Any) -> None:
    """Add `verify-bundle` to the command line."""
    parser = commands.add_parser(
        "verify-bundle",
        help="check a generation's bundle without its server",
        description=_DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("bundle", type=Path, metavar="FILE", help="the bundle")
    parser.add_argument(
        "--key",
        type=Path,
        action="append",
        required=True,
        metavar="PUB",
        help="public key of the server that you trust, PEM; may be repeated, and one suffices",
    )
    parser.add_argument(
        "--only-given-keys",
        action="store_true",
        help="trust no key that rotations join to a given one: an old key that was stolen vouches "
        "for nothing any more",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="LIST",
        help="the server's list of keys as you saved it (/keys.json, or what `whence keys --json` "
        "printed): rotations count also if the bundle leaves them out",
    )
    parser.add_argument(
        "--text",
        type=Path,
        metavar="TEXT",
        help="a text that you were given, UTF-8: check that it is this generation's output",
    )
    parser.add_argument(
        "--training",
        type=Path,
        metavar="SIG",
        help="signature of the training that made the weights (lineage.sig): go on to it",
    )
    parser.add_argument(
        "--training-key",
        type=Path,
        action="append",
        default=[],
        metavar="PUB",
        help="with --training: public key of those whose trainings you trust, PEM; may be "
        "repeated, and one suffices. It signs no generations, and --key no trainings",
    )
    parser.add_argument(
        "--document",
        type=Path,
        nargs=2,
        metavar=("TEXT", "PROOF"),
        help="with --training: a document, and what `whence training proof --json` printed for it: "
        "check that the weights were trained on it",
    )
    parser.add_argument(
        "--log-key",
        metavar="VKEY",
        help="verifier key of the transparency log that must have the statement, NAME+ID+BASE64",
    )
    parser.add_argument(
        "--witness",
        dest="witnesses",
        action="append",
        default=[],
        metavar="VKEY",
        help="with --log-key: verifier key of a witness that must have cosigned the log's "
        "checkpoint; may be repeated, and all must have, unless --witness-quorum says how many",
    )
    parser.add_argument(
        "--witness-quorum",
        type=parse_quorum,
        metavar="N",
        help="with --witness: number of the witnesses that must have cosigned; the others may have",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="with --log-key: an earlier checkpoint of the log that you kept, or a bundle that has "
        "one: the log must continue it. Have the bundle exported with --known FILE",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def main(arguments: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="whence verify-bundle",
        description=_DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    return run(parser.parse_args(arguments))


def run(arguments: argparse.Namespace) -> int:
    """Check the bundle, and print what was checked."""
    try:
        data = _read(arguments.bundle, MAX_BYTES)
        report = verify_bundle(
            data,
            _read_keys(arguments.key),
            _read_origin(arguments),
            _read_log_keys(arguments),
            _read_demands(arguments),
        )
    except (OSError, ProofError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        where = f"{error.filename}: " if isinstance(error, OSError) else ""
        print(f"whence: {escape(f'{where}{reason}')}", file=sys.stderr)
        return UNUSABLE
    print(_describe(report) if arguments.json else _format(report))
    return VERIFIED if report.verified else REFUSED


def _read_origin(arguments: argparse.Namespace) -> Origin | None:
    """Read the files about the training of the weights; None if none are given.

    Raises:
        ProofError: a document or a key is given without a training, or a training without a key.
        OSError: a file cannot be read.
    """
    if arguments.training is None:
        if arguments.document or arguments.training_key:
            raise ProofError(
                "--document and --training-key need --training: give the training's signature too"
            )
        return None
    if not arguments.training_key:
        raise ProofError("--training needs --training-key: give the public key of its signer")
    training, keys = _read(arguments.training, MAX_BYTES), _read_keys(arguments.training_key)
    if not arguments.document:
        return Origin(training, keys)
    document, proof = (_read(path, MAX_BYTES) for path in arguments.document)
    return Origin(training, keys, document, proof)


def _read_keys(paths: Sequence[Path]) -> list[str]:
    return [_read(path, 64 << 10).decode(errors="replace") for path in paths]


def _read_demands(arguments: argparse.Namespace) -> Demands:
    """Read what else the bundle has to hold.

    Raises:
        ProofError: a file is not what it should be.
        OSError: a file cannot be read.
    """
    text, known = None, SavedKeys(())
    if arguments.text is not None:
        try:
            text = _read(arguments.text, MAX_BYTES).decode()
        except UnicodeDecodeError:
            raise ProofError("--text: the file is no text in UTF-8") from None
    if arguments.keys is not None:
        known = parse_saved_list(_read(arguments.keys, MAX_BYTES))
    return Demands(text, known, arguments.only_given_keys)


def _read_log_keys(arguments: argparse.Namespace) -> LogKeys | None:
    """Return the keys of the transparency log; None if none are given.

    Raises:
        ProofError: a witness or a checkpoint is given without a log.
        OSError: the checkpoint cannot be read.
    """
    given = (arguments.witnesses, arguments.witness_quorum, arguments.checkpoint)
    if arguments.log_key is None:
        if any(given):
            raise ProofError(
                "--witness, --witness-quorum and --checkpoint need --log-key: give the log's key"
            )
        return None
    known = b""
    if arguments.checkpoint is not None:
        known = _read(arguments.checkpoint, MAX_BYTES)
        if not known:
            raise ProofError(f"--checkpoint {arguments.checkpoint}: the file is empty")
    return LogKeys(arguments.log_key, arguments.witnesses, arguments.witness_quorum, known)


def parse_quorum(text: str) -> int:
    """Parse a number of witnesses.

    Raises:
        argparse.ArgumentTypeError: it is no whole number from 1 on.
    """
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= _MOST_WITNESSES):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {_MOST_WITNESSES}")
    return int(text)


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        # One byte more than is allowed: the check of the size refuses it.
        return file.read(limit + 1)


def _format(report: Report) -> str:
    rows = [(_MARKS[check.passed], check.name, check.detail) for check in report.checks]
    if report.verified and report.statement is not None:
        rows += [("", *claim) for claim in _list_claims(report.statement.predicate)]
        rows += [("", *line) for line in _list_content(_read_content(report))]
    lines = [f"{mark:<6} {name:<10} {_escape_line(text)}" for mark, name, text in rows]
    lines.append("verified" if report.verified else "NOT VERIFIED")
    return "\n".join(lines)


def _escape_line(text: str) -> str:
    # A name with line breaks could otherwise look like lines of this command.
    return escape(text).replace("\n", "\\n")


def _list_claims(predicate: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the statement says, in a few lines."""
    model = predicate["model"]
    rows = {
        "generation": predicate.get("generationId"),
        "model": f"{model.get('name')} ({model.get('digest', 'digest unknown')})",
        "weights": model.get("weightsDigest"),
        "told by": predicate.get("recordedBy"),
        "upstream": _spell(predicate, "upstream"),
        "grades": _spell(predicate, "grades"),
        "time": f"{predicate.get('startTime')} to {predicate.get('endTime')}",
        "decoding": _spell(predicate, "decoding"),
        "branch": _spell(predicate, "fork"),
        "results": _spell(predicate, "results"),
        "training": _spell(predicate, "trainingRun"),
        "policy": predicate.get("contentPolicy"),
        "caller": predicate.get("caller"),
        "closed by": predicate.get("closedBy"),
    }
    return [(name, str(value)) for name, value in rows.items() if value]


def _spell(predicate: Mapping[str, Any], name: str) -> str:
    return json.dumps(predicate[name]) if name in predicate else ""


def _list_content(content: "Content") -> list[tuple[str, str]]:
    """Return prompt and output, as far as they are shown."""
    missing = "hidden" if content.keeps_text else "not on record"
    rows = [("prompt", missing if content.prompt is None else quote(content.prompt))]
    if not content.keeps_text or not content.sequences:
        return [*rows, ("text", missing)]
    return rows + [(f"text {one.sequence_index}", quote(one.text)) for one in content.sequences]


def _read_content(report: Report) -> "Content":
    if report.bundle is None or report.statement is None:
        raise ValueError("the content of a refused bundle is not read")
    # It parses messages: nothing is imported for a bundle that fails before.
    from whence.proof.content import read_content

    return read_content(report.bundle, report.statement)


def _describe(report: Report) -> str:
    statement = report.statement
    described: dict[str, Any] = {
        "verified": report.verified,
        "checks": [check._asdict() for check in report.checks],
        "statement": None if statement is None else statement.predicate,
    }
    if report.verified:
        content = _read_content(report)
        described["prompt"] = content.prompt
        described["sequences"] = [sequence._asdict() for sequence in content.sequences]
    return json.dumps(described, separators=(",", ":"))
