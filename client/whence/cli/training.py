"""`whence training`: the training runs that made the weights."""

import argparse
import re
import shutil
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from whence.cli.connection import connect
from whence.cli.exits import EXITS, FAILED, OK, UsageError
from whence.cli.json_lines import describe_whole_message, format_json
from whence.cli.render import wants_color
from whence.cli.runs import (
    STEP_HEADING,
    format_event,
    format_progress,
    format_step,
    format_summary,
    name_state,
    run_id,
)
from whence.cli.training_explain import format_explanation, gather_responses
from whence.cli.training_page import write_run_page
from whence.cli.training_show import draw_plots, fetch_course, format_details
from whence.merkle import verify_inclusion
from whence.summary import escape, quote
from whence.v1 import training_pb2 as pb

_EPILOG = f"""\
RUN is the id of a training run, or an unambiguous beginning of one (default: the run that made the
served model).

--json prints the contract's messages in protobuf's JSON mapping, one on each line with every field:
TrainingRunSummary (list), GetTrainingRunResponse (show), WatchTrainingRunResponse (watch),
TrainingStep (steps), GetDocumentResponse (document), TraceEmergenceResponse (explain), and
GetInclusionProofResponse with "verified" and "verified_root" (proof).

{EXITS}"""
_MOST_COLUMNS = 120
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `training` and its own commands to the command line."""
    parser = commands.add_parser("training", help="show the training runs that made the weights")
    actions = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, meaning: str) -> argparse.ArgumentParser:
        action: argparse.ArgumentParser = actions.add_parser(
            name,
            parents=[common],
            help=meaning,
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.set_defaults(run=run)
        action.add_argument(
            "--json", action="store_true", help="print one JSON object on each line"
        )
        if name != "list":
            action.add_argument("training_run", metavar="RUN", nargs="?", help="see below")
        return action

    listing = add("list", run_list, "training runs on record, newest first")
    listing.add_argument(
        "--limit",
        type=_parse_count,
        default=20,
        metavar="N",
        help="maximum number of runs (default: 20)",
    )
    showing = add("show", run_show, "one run: settings, checkpoints, loss, and updates by layer")
    showing.add_argument(
        "--html", type=Path, metavar="FILE", help="also write the run to this file, as a page"
    )
    showing.add_argument("--color", choices=["auto", "always", "never"], default="auto")
    watching = add("watch", run_watch, "follow a run until it ends")
    watching.add_argument(
        "--after",
        type=_parse_whole,
        metavar="POSITION",
        help="continue after this entry; 0 shows all entries",
    )
    stepping = add("steps", run_steps, "optimizer steps, one on each line")
    stepping.add_argument(
        "--first", type=_parse_whole, default=0, metavar="STEP", help="first step to print"
    )
    stepping.add_argument(
        "--last", type=_parse_whole, default=0, metavar="STEP", help="last step to print"
    )
    stepping.add_argument(
        "--stride", type=_parse_count, default=1, metavar="N", help="print one step in N"
    )
    stepping.add_argument(
        "--superseded", action="store_true", help="include steps that a resumed run discarded"
    )
    reading = add("document", run_document, "a document of the training set, and its text")
    reading.add_argument("--example", action="store_true", help="WHICH is the id of an example")
    reading.add_argument(
        "--no-text", action="store_true", help="print the document's location and no text"
    )
    reading.add_argument(
        "--raw", action="store_true", help="print the document's bytes and nothing else"
    )
    reading.add_argument(
        "--begin",
        type=_parse_whole,
        default=0,
        metavar="BYTE",
        help="with --raw: first byte to print",
    )
    reading.add_argument(
        "--end",
        type=_parse_whole,
        default=0,
        metavar="BYTE",
        help="with --raw: first byte not to print",
    )
    proving = add("proof", run_proof, "prove that a document is in the training set")
    proving.add_argument(
        "--root",
        type=_parse_digest,
        metavar="HEX",
        help="Merkle root to check against, noted elsewhere",
    )
    for action in (reading, proving):
        action.add_argument("which", metavar="WHICH", help="index or SHA-256 of a document")
    explaining = add(
        "explain", run_explain, "how the probability of a text changed during training, and why"
    )
    explaining.add_argument(
        "prompt", metavar="PROMPT", help="text before the explained text; may be empty"
    )
    explaining.add_argument("continuation", metavar="TEXT", help="text to explain")
    explaining.add_argument(
        "--no-groups",
        action="store_true",
        help="leave out the contributions of parameter groups (faster)",
    )
    explaining.add_argument(
        "--step",
        type=_parse_count,
        metavar="STEP",
        help="explain the change around this step (default: the largest)",
    )
    explaining.add_argument(
        "--examples",
        type=_parse_whole,
        default=200,
        metavar="N",
        help="maximum number of examples to look up (default: 200)",
    )


def run_list(arguments: argparse.Namespace) -> int:
    """Print summaries, newest first."""
    with connect(arguments) as client:
        runs = client.training_runs.list(page_size=min(arguments.limit, 100))
        for run in islice(runs, arguments.limit):
            print(
                format_json(describe_whole_message(run)) if arguments.json else format_summary(run)
            )
    return OK


def run_show(arguments: argparse.Namespace) -> int:
    """Print one run and its plots; write its page on request."""
    with connect(arguments) as client:
        run = client.training_runs.get(run_id(client, arguments.training_run))
        course = None
        if arguments.html or not arguments.json:
            course = fetch_course(client, run)
    if arguments.html and course is not None:
        write_run_page(arguments.html, run, course)
    if arguments.json or course is None:
        print(format_json(describe_whole_message(run)))
        return OK
    for text in format_details(run):
        print(text)
    print()
    num_columns = min(shutil.get_terminal_size((80, 24)).columns, _MOST_COLUMNS)
    for text in draw_plots(
        run, course, num_columns, color=wants_color(arguments.color, sys.stdout)
    ):
        print(text)
    return OK


def run_watch(arguments: argparse.Namespace) -> int:
    """Print events as they are recorded, until the run ends."""
    with connect(arguments) as client:
        wanted = run_id(client, arguments.training_run)
        with client.training_runs.watch(wanted, after_position=arguments.after) as watching:
            for response in watching:
                if arguments.json:
                    print(format_json(describe_whole_message(response)), flush=True)
                    continue
                for event in response.events:
                    print(format_event(event), flush=True)
        ended = client.training_runs.get(wanted).summary
    print(f"the run is {name_state(ended.state)}, {format_progress(ended)}", file=sys.stderr)
    return OK


def run_steps(arguments: argparse.Namespace) -> int:
    """Print steps, one on each line."""
    if not arguments.json:
        print(STEP_HEADING)
    with connect(arguments) as client:
        steps = client.training_runs.steps(
            run_id(client, arguments.training_run),
            first_step=arguments.first,
            last_step=arguments.last,
            stride=arguments.stride,
            include_superseded=arguments.superseded,
        )
        for step in steps:
            print(
                format_json(describe_whole_message(step)) if arguments.json else format_step(step)
            )
    return OK


def run_document(arguments: argparse.Namespace) -> int:
    """Print a document's location and text."""
    if arguments.raw and (arguments.json or arguments.no_text):
        raise UsageError("--raw prints the text alone: leave out --json and --no-text")
    if (arguments.begin or arguments.end) and not arguments.raw:
        raise UsageError("--begin and --end are for --raw")
    which: dict[str, Any] = _parse_which(arguments.which)
    if arguments.example:
        if "index" not in which:
            raise UsageError(
                f"{arguments.which!r} is not an example's id: a whole number from 0 on"
            )
        which = {"example_id": which["index"]}
    with connect(arguments) as client:
        wanted = run_id(client, arguments.training_run)
        if arguments.raw:
            sys.stdout.flush()
            pieces = client.training_runs.read_document(
                wanted, begin_byte=arguments.begin, end_byte=arguments.end, **which
            )
            for octets in pieces:
                sys.stdout.buffer.write(octets)
            return OK
        found = client.training_runs.document(wanted, omit_text=arguments.no_text, **which)
    if arguments.json:
        print(format_json(describe_whole_message(found)))
    else:
        document = found.document
        print(f"document  {found.index}")
        print(f"source    {escape(document.source)}")
        print(f"bytes     {document.begin_byte:,} to {document.end_byte:,}")
        print(f"sha256    {escape(document.sha256)}")
        for piece in found.pieces:
            print(f"example   bytes {piece.begin_byte:,} to {piece.end_byte:,} of the document")
        others = {piece.document_index for piece in found.example_pieces} - {found.index}
        if others:
            print(f"also of   documents {', '.join(map(str, sorted(others)))}")
        if not arguments.no_text:
            print(f"\n{escape(found.text.decode('utf-8', 'replace'))}")
    return OK


def run_proof(arguments: argparse.Namespace) -> int:
    """Fetch a proof and verify it locally; return 1 if it does not hold."""
    which = _parse_which(arguments.which)
    with connect(arguments) as client:
        wanted = run_id(client, arguments.training_run)
        proof = client.training_runs.inclusion_proof(wanted, **which)
        root = arguments.root or client.training_runs.get(wanted).dataset.merkle_root
        sha256 = which.get("sha256")
        if sha256 is None:
            found = client.training_runs.document(wanted, omit_text=True, **which)
            sha256 = found.document.sha256
    problem = _find_problem(proof, sha256, which.get("index"), root)
    if arguments.json:
        verdict = {"verified": not problem, "verified_root": root}
        print(format_json({**describe_whole_message(proof), **verdict}))
        return FAILED if problem else OK
    source = "given" if arguments.root else "on record"
    print(f"document  {proof.leaf_index} of {proof.tree_size:,}")
    print(f"sha256    {proof.leaf_data.hex()}")
    for sibling in proof.audit_path:
        print(f"sibling   {sibling.hex()}")
    print(f"root      {root} ({source})")
    if problem:
        print(f"NOT verified: {problem}")
        return FAILED
    print("verified: a document with this SHA-256 is in the training set with this root")
    return OK


def _find_problem(
    proof: pb.GetInclusionProofResponse, sha256: str, index: int | None, root: str
) -> str:
    """Return why a proof does not hold for the requested document; "" if it holds."""
    if index is not None and proof.leaf_index != index:
        return f"this is a proof of document {proof.leaf_index}, and {index} was asked for"
    if proof.leaf_data.hex() != sha256:
        return f"this is a proof of another document than the one with the SHA-256 {escape(sha256)}"
    if not verify_inclusion(proof, root):
        return "this proof does not lead to this root"
    return ""


def run_explain(arguments: argparse.Namespace) -> int:
    """Trace a text's emergence, and print it."""
    with connect(arguments) as client:
        wanted = run_id(client, arguments.training_run)
        answers: list[pb.TraceEmergenceResponse] = []
        shows_progress = sys.stderr.isatty() and not arguments.json
        for answer in client.training_runs.trace_emergence(
            wanted,
            prompt=arguments.prompt,
            continuation=arguments.continuation,
            omit_groups=arguments.no_groups,
        ):
            if arguments.json:
                print(format_json(describe_whole_message(answer)), flush=True)
            answers.append(answer)
            if shows_progress and answer.HasField("point"):
                steps = answers[0].started.steps
                print(f"\rstep {answer.point.step:,} of {max(steps):,}", end="", file=sys.stderr)
        if shows_progress:
            print("\r\x1b[K", end="", file=sys.stderr)
        if arguments.json:
            return OK
        run = client.training_runs.get(wanted)
        print(f"run {escape(run.summary.training_run_id)}")
        print(f"log p({quote(arguments.continuation)} | {quote(arguments.prompt)}), in nats\n")
        found = gather_responses(answers)
        for text in format_explanation(
            client,
            run,
            found,
            text=arguments.continuation,
            num_examples=arguments.examples,
            step=arguments.step,
        ):
            print(text)
    return OK


def _parse_which(text: str) -> dict[str, Any]:
    if text.isascii() and text.isdecimal() and len(text) < 20:
        return {"index": int(text)}
    if _SHA256.fullmatch(text):
        return {"sha256": text.lower()}
    raise UsageError(f"{text!r} is neither a document's index nor a SHA-256 of 64 hex digits")


def _parse_count(text: str) -> int:
    number = _parse_whole(text)
    if number == 0:
        raise argparse.ArgumentTypeError("expected a whole number from 1 on")
    return number


def _parse_whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise argparse.ArgumentTypeError("expected a whole number from 0 on")
    return int(text)


def _parse_digest(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise argparse.ArgumentTypeError("expected 64 hex digits")
    return text.lower()
