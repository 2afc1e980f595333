"""`whence-server verify-generation`: verify a saved generation, without a server.

Imports are made when the command runs, because `whence-server serve` starts from few modules.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from whence_server.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from whence.proof.verification import Report
    from whence.v1 import verification_pb2 as pb

EPILOG = """exit status: 0 verified, also within the margin; 1 divergent, or a bundle that is
refused; 2 the file, a key or the model cannot be read; 3 not verifiable, the reason is told"""
_REFUSED = 1
_EXIT_STATUSES = {
    "VERDICT_VERIFIED": 0,
    "VERDICT_VERIFIED_WITHIN_MARGIN": 0,
    "VERDICT_DIVERGENT": 1,
    "VERDICT_NOT_VERIFIABLE": 3,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Compute a recorded generation again with weights on this machine, and compare every "
        "choice. The file is a bundle of `whence generations export` that shows everything, whose "
        "signature is checked first; or a GenerationRecord of the contract, in protobuf's binary "
        "or JSON form, as `whence verify ID --save FILE` writes it, which nobody has signed."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="bundle or saved generation")
    parser.add_argument(
        "--key",
        type=Path,
        action="append",
        default=[],
        metavar="PUB",
        help="for a bundle: public key of the server that you trust, PEM; may be repeated, and one "
        "suffices",
    )
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory or GGUF file with the weights that the record names",
    )
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        type=Path,
        help="directory of the adapter that the record names; without it none is added",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="directory that keeps digests and the measured noise; without it they are computed "
        "every time",
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads; 0, the default, for all cores"
    )
    parser.add_argument("--every-step", action="store_true", help="also tell the exact steps")
    parser.add_argument(
        "--json", action="store_true", help="print VerifyGenerationResponse messages as JSON"
    )


def run(parsed: argparse.Namespace) -> int:
    """Verify a saved generation; return the exit status.

    Raises:
        ConfigurationError: the file, a key or the model cannot be read.
    """
    from google.protobuf import json_format

    from whence.proof.bundle import is_bundle
    from whence.summary.verifications import describe_event
    from whence.v1 import verification_pb2 as pb
    from whence_server.config.environment import use_passive_waiting
    from whence_server.rpc.bundled_record import make_record

    use_passive_waiting()
    read = _read_file(parsed.file)
    if is_bundle(read):
        report = _check_bundle(read, parsed)
        if report.bundle is None or report.statement is None:
            return _REFUSED
        bundle, statement = report.bundle, report.statement
        events = _run(parsed, lambda: make_record(bundle, statement), are_stops_told=False)
    elif parsed.key:
        raise ConfigurationError(f"{parsed.file} is no bundle: --key checks bundles alone")
    else:
        record = read_record(read, parsed.file)
        events = _run(parsed, lambda: record)
    status = 2
    for event in events:
        if parsed.json:
            print(json.dumps(json_format.MessageToDict(event, preserving_proto_field_name=True)))
        else:
            for line in describe_event(event):
                print(line)
        sys.stdout.flush()
        if event.HasField("result"):
            status = _EXIT_STATUSES[pb.Verdict.Name(event.result.verdict)]
    return status


def _read_file(path: Path) -> bytes:
    from whence_server.rpc.verification_record import MAX_RECORD_BYTES

    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise ConfigurationError(
                f"{path} has more than {MAX_RECORD_BYTES >> 20} MiB: it is no saved generation"
            )
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _check_bundle(read: bytes, parsed: argparse.Namespace) -> "Report":
    """Check a bundle's signature and entries, and say what was checked.

    Raises:
        ConfigurationError: a key is missing or cannot be read.
    """
    from whence.proof.faults import ProofError
    from whence.proof.verification import verify_bundle
    from whence.summary import quote

    if not parsed.key:
        raise ConfigurationError(
            f"{parsed.file} is a signed bundle: give the public key of its server with --key"
        )
    try:
        keys = [path.read_text(errors="replace") for path in parsed.key]
        report = verify_bundle(read, keys)
    except OSError as error:
        raise ConfigurationError(f"--key {error.filename}: {error.strerror}") from error
    except ProofError as error:
        raise ConfigurationError(str(error)) from error
    for check in report.checks:
        mark = "FAULT: " if check.passed is False else ""
        # Messages of the contract alone are on the output with --json.
        where = sys.stderr if parsed.json else sys.stdout
        print(f"{check.name:<20}{mark}{quote(check.detail)[1:-1]}", file=where)
    return report


def read_record(read: bytes, path: Path) -> "pb.GenerationRecord":
    """Parse a saved generation.

    Raises:
        ConfigurationError: it is none.
    """
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError

    from whence.v1 import verification_pb2 as pb

    try:
        if read.lstrip()[:1] == b"{":
            return json_format.Parse(read, pb.GenerationRecord())
        return pb.GenerationRecord.FromString(read)
    except (DecodeError, json_format.ParseError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigurationError(f"{path} is no saved generation: {first}") from error


def _run(
    parsed: argparse.Namespace,
    read: "Callable[[], pb.GenerationRecord]",
    *,
    are_stops_told: bool = True,
) -> "Iterator[pb.VerifyGenerationResponse]":
    """Yield the findings; a failure of the replay is no verdict, which its exit status would tell.

    Raises:
        ConfigurationError: the replay failed.
    """
    try:
        yield from _verify(parsed, read, are_stops_told=are_stops_told)
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        first = str(error).splitlines()[0] if str(error) else "no message"
        what = f"{parsed.file} cannot be verified: {type(error).__name__}: {first}"
        raise ConfigurationError(what) from error


def _verify(
    parsed: argparse.Namespace, read: "Callable[[], pb.GenerationRecord]", *, are_stops_told: bool
) -> "Iterator[pb.VerifyGenerationResponse]":
    from whence.v1 import verification_pb2 as pb
    from whence_server.analysis.results import make_refusal
    from whence_server.analysis.setup import AnalysisSetup
    from whence_server.rpc.verification_record import UnverifiableError, make_question
    from whence_server.verification import make_options

    try:
        question = make_question(read(), every_step=parsed.every_step)
        question = question._replace(are_stops_told=are_stops_told)
    except UnverifiableError as error:
        yield pb.VerifyGenerationResponse.FromString(make_refusal(error.reason, error.message))
        return
    from whence_server.analysis.replay.models import Models
    from whence_server.analysis.replay.verifier import wrap

    options = make_options(parsed.model, parsed.cache)
    if parsed.cache is not None:
        parsed.cache.mkdir(parents=True, exist_ok=True)
    if parsed.adapter is not None:
        name = question.identity.adapter or "adapter"
        options = options._replace(adapters=((name, str(parsed.adapter)),))
    noise_file = "" if parsed.cache is None else str(parsed.cache / "noise.json")
    threads = parsed.threads or len(os.sched_getaffinity(0))
    verifier = Models(
        AnalysisSetup(options, noise_file, threads, follows_record=True)
    ).get_verifier(question)
    yield from map(wrap, verifier.verify(question))
