"""`whence verify`: a recorded generation is computed again."""

import argparse
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from whence.cli.connection import connect
from whence.cli.exits import EXITS, OK, UsageError
from whence.cli.json_lines import describe_message, format_json
from whence.client import Client
from whence.summary.verifications import describe_event
from whence.v1 import verification_pb2 as pb

DIVERGENT = 1
NOT_VERIFIABLE = 4
"""Exit statuses of verdicts besides 0."""
_STATUSES = {
    pb.VERDICT_VERIFIED: OK,
    pb.VERDICT_VERIFIED_WITHIN_MARGIN: OK,
    pb.VERDICT_DIVERGENT: DIVERGENT,
}

_EPILOG = f"""\
--json prints the contract's messages, whence.v1.VerifyGenerationResponse, one on each line, in
protobuf's JSON mapping.

verdicts: verified (every choice is what these weights give), verified within margin (where they
differ, it is by less than the measured noise of the arithmetic), divergent (exit status
{DIVERGENT}), not verifiable (exit status {NOT_VERIFIABLE}; the reason is told).

{EXITS}"""


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `verify` to the command line."""
    parser = commands.add_parser(
        "verify",
        parents=[common],
        help="compute a recorded generation again, and compare every choice",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("generation_id", metavar="ID")
    parser.add_argument(
        "--every-step", action="store_true", help="also print the steps that are exact"
    )
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="write the generation to a file instead, for `whence-server verify-generation`",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on each line")
    parser.set_defaults(run=run_verify)


def run_verify(arguments: argparse.Namespace) -> int:
    """Print the findings as they come; return the verdict's exit status.

    Raises:
        UsageError: the file cannot be written.
    """
    with connect(arguments) as client:
        if arguments.save is not None:
            _save(client, arguments.generation_id, arguments.save)
            return OK
        # A stream that ends without a verdict verifies nothing.
        status = NOT_VERIFIABLE
        with client.generations.verify(
            arguments.generation_id, every_step=arguments.every_step
        ) as events:
            for event in events:
                _print(event, as_json=arguments.json)
                if event.HasField("result"):
                    status = _STATUSES.get(event.result.verdict, NOT_VERIFIABLE)
    return status


def _print(event: pb.VerifyGenerationResponse, *, as_json: bool) -> None:
    if as_json:
        print(format_json(describe_message(event)), flush=True)
        return
    for line in describe_event(event):
        print(line, flush=True)


def _save(client: Client, generation_id: str, path: Path) -> None:
    record = client.generations.record(generation_id)
    try:
        path.write_text(json_format.MessageToJson(record, preserving_proto_field_name=True) + "\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    print(f"{generation_id} is in {path}: {len(record.steps)} steps")
