"""`whence-server verify-generation`: verify a saved generation, without a server.

Imports are made when the command runs, because `whence-server serve` starts from few modules.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from whence_server.domain.errors import ConfigurationError

if TYPE_CHECKING:
    from whence.v1 import verification_pb2 as pb

EPILOG = """exit status: 0 verified, also within the margin; 1 divergent; 2 the file or the model
cannot be read; 3 not verifiable, the reason is told"""
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
        "choice. The file is a GenerationRecord of the contract, in protobuf's binary or JSON "
        "form, as `whence verify ID --save FILE` writes it."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="saved generation")
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
        ConfigurationError: the file or the model cannot be read.
    """
    from google.protobuf import json_format

    from whence.summary.verifications import describe_event
    from whence.v1 import verification_pb2 as pb
    from whence_server.config.environment import use_passive_waiting

    use_passive_waiting()
    status = 1
    for event in _verify(parsed, read_record(parsed.file)):
        if parsed.json:
            print(json.dumps(json_format.MessageToDict(event, preserving_proto_field_name=True)))
        else:
            for line in describe_event(event):
                print(line)
        sys.stdout.flush()
        if event.HasField("result"):
            status = _EXIT_STATUSES[pb.Verdict.Name(event.result.verdict)]
    return status


def read_record(path: Path) -> "pb.GenerationRecord":
    """Read a saved generation.

    Raises:
        ConfigurationError: it cannot be read.
    """
    from google.protobuf import json_format
    from google.protobuf.message import DecodeError

    from whence.v1 import verification_pb2 as pb
    from whence_server.rpc.verification_record import MAX_RECORD_BYTES

    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            raise ConfigurationError(
                f"{path} has more than {MAX_RECORD_BYTES >> 20} MiB: it is no saved generation"
            )
        read = path.read_bytes()
        if read.lstrip()[:1] == b"{":
            return json_format.Parse(read, pb.GenerationRecord())
        return pb.GenerationRecord.FromString(read)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except (DecodeError, json_format.ParseError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigurationError(f"{path} is no saved generation: {first}") from error


def _verify(
    parsed: argparse.Namespace, record: "pb.GenerationRecord"
) -> "Iterator[pb.VerifyGenerationResponse]":
    from whence.v1 import verification_pb2 as pb
    from whence_server.analysis.results import make_refusal
    from whence_server.analysis.setup import AnalysisSetup
    from whence_server.rpc.verification_record import UnverifiableError, make_question
    from whence_server.verification import make_options

    try:
        question = make_question(record, every_step=parsed.every_step)
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
    threads = parsed.threads or os.cpu_count() or 1
    verifier = Models(AnalysisSetup(options, noise_file, threads)).get_verifier(question)
    yield from map(wrap, verifier.verify(question))
