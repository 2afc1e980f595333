"""Arguments, output and exit status of `whence-server verify-model`."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.training.verify.findings import Report, Verdict

EPILOG = """exit status: 0 everything is as the record has it; 1 something is not: each is named; 2
nothing could be checked: no record, no model, or a replay that cannot be made"""

UNSIGNED = (
    "The record is not signed: it reveals accidental changes, not a forgery of files and record "
    "together. Compare the head with a copy that is kept elsewhere."
)
_SHORT = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="directory of a model or a checkpoint"
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="lineage.binpb of the run (default: in DIR or up to two levels above)",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="base model of an adapter (default: the location on record)",
    )
    parser.add_argument(
        "--replay",
        type=_parse_steps,
        metavar="A:B",
        help="also train again from the checkpoint after step A (0 is the beginning) to step B, "
        "and compare every tensor",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(parsed: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        The exit status; see `Verdict`.
    """
    from whence_server.training.verify.verify import verify

    try:
        report = verify(parsed.directory, parsed.record, parsed.base)
        is_broken = report.verdict is Verdict.NOT_VERIFIED and not report.head
        if parsed.replay is not None and is_broken:
            report.notes.append("nothing was trained again, as the record is not intact")
        elif parsed.replay is not None:
            _replay(report, *parsed.replay)
    except (ConfigurationError, LineageError) as error:
        print(f"whence-server: {error}", file=sys.stderr)
        return Verdict.CANNOT_BE_CHECKED
    if parsed.json:
        print(json.dumps(_convert_to_json(report), indent=2))
    else:
        print("\n".join(_format_lines(report)))
    return report.verdict


def _replay(report: Report, first_step: int, last_step: int) -> None:
    from whence_server.training.verify.replay import replay

    replay(report, first_step, last_step)


def _format_lines(report: Report) -> Iterator[str]:
    yield f"{report.directory}: {_VERDICTS[report.verdict]}"
    if report.reason:
        yield f"  {report.reason}"
    for finding in report.findings:
        yield f"  {finding}"
    for label, value in _iterate_facts(report):
        yield f"  {label:<10} {value}"
    for note in report.notes:
        yield f"  {'note':<10} {note}"
    if report.record is not None:
        yield UNSIGNED


_VERDICTS = {
    Verdict.VERIFIED: "verified",
    Verdict.NOT_VERIFIED: "NOT verified",
    Verdict.CANNOT_BE_CHECKED: "cannot be checked",
}


def _iterate_facts(report: Report) -> Iterator[tuple[str, str]]:
    as_recorded = "" if report.record is None else " as recorded"
    yield "files", f"{report.num_files}{as_recorded}; model digest {report.model_digest or 'none'}"
    weights_digest = report.weights_digest or "none"
    yield "tensors", f"{report.num_tensors}{as_recorded}; weights digest {weights_digest}"
    yield "tokenizer", f"digest {report.tokenizer_digest or 'none'}"
    if report.base:
        yield "base", report.base
    if report.record is None or not report.head:
        return
    yield "record", f"{report.record}: {report.num_entries} entries, intact; head {report.head}"
    planned = f" of {report.num_planned_steps}" if report.num_planned_steps else ""
    place = f", step {report.step}{planned}, attempt {report.attempt}" if report.attempt else ""
    yield "run", f"{report.training_run_id} ({report.run_name}){place}"
    if report.merkle_root:
        yield "text", f"{report.num_documents} documents; Merkle root {report.merkle_root}"
    yield "began at", report.parent or "not on record"
    if report.replay:
        yield "replay", report.replay


def _convert_to_json(report: Report) -> dict[str, Any]:
    fields = asdict(report)
    fields["directory"] = str(report.directory)
    fields["record"] = None if report.record is None else str(report.record)
    return {
        "verdict": report.verdict.name.lower(),
        **{k: fields[k] for k in fields if k != "verdict"},
        "unsigned": UNSIGNED if report.record else None,
    }


def _parse_steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()) or int(first) >= int(last):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected two step numbers, the first below the second, as in 10:20"
        )
    return int(first), int(last)
