"""`whence verify-bundle`: checks a generation with nothing but files.

It imports no gRPC: an auditor needs the client's package and `cryptography` alone.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whence.proof.bundle_format import MAX_BYTES
from whence.proof.faults import ProofError
from whence.proof.verification import LogKeys, Origin, Report, verify_bundle
from whence.summary import escape

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
        "--training",
        type=Path,
        metavar="SIG",
        help="signature of the training that made the weights (lineage.sig): go on to it",
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
        "checkpoint; may be repeated, and all must have",
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
        keys = [_read(path, 64 << 10).decode(errors="replace") for path in arguments.key]
        report = verify_bundle(data, keys, _read_origin(arguments), _read_log_keys(arguments))
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
        ProofError: a document is given without a training.
        OSError: a file cannot be read.
    """
    if arguments.training is None:
        if arguments.document:
            raise ProofError("--document needs --training: give the training's signature too")
        return None
    training = _read(arguments.training, MAX_BYTES)
    if not arguments.document:
        return Origin(training)
    document, proof = (_read(path, MAX_BYTES) for path in arguments.document)
    return Origin(training, document, proof)


def _read_log_keys(arguments: argparse.Namespace) -> LogKeys | None:
    """Return the keys of the transparency log; None if none are given.

    Raises:
        ProofError: a witness is given without a log.
    """
    if arguments.log_key is not None:
        return LogKeys(arguments.log_key, arguments.witnesses)
    if arguments.witnesses:
        raise ProofError("--witness needs --log-key: give the key of the log that it witnesses")
    return None


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        # One byte more than is allowed: the check of the size refuses it.
        return file.read(limit + 1)


def _format(report: Report) -> str:
    lines = [
        f"{_MARKS[check.passed]:<6} {check.name:<10} {escape(check.detail)}"
        for check in report.checks
    ]
    if report.verified and report.statement is not None:
        lines += [
            f"       {name:<10} {escape(value)}"
            for name, value in _list_claims(report.statement.predicate)
        ]
    lines.append("verified" if report.verified else "NOT VERIFIED")
    return "\n".join(lines)


def _list_claims(predicate: Any) -> list[tuple[str, str]]:
    """Return what the statement says, in a few lines."""
    model, results = predicate.get("model", {}), predicate.get("results", {})
    rows = {
        "generation": predicate.get("generationId"),
        "model": f"{model.get('name')} ({model.get('digest', 'digest unknown')})",
        "weights": model.get("weightsDigest"),
        "time": f"{predicate.get('startTime')} to {predicate.get('endTime')}",
        "decoding": json.dumps(predicate.get("decoding")),
        "results": json.dumps(results),
        "training": json.dumps(predicate["trainingRun"]) if "trainingRun" in predicate else None,
        "caller": predicate.get("caller"),
    }
    return [(name, str(value)) for name, value in rows.items() if value]


def _describe(report: Report) -> str:
    statement = report.statement
    return json.dumps(
        {
            "verified": report.verified,
            "checks": [check._asdict() for check in report.checks],
            "statement": None if statement is None else statement.predicate,
        },
        separators=(",", ":"),
    )
