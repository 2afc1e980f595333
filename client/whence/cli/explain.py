"""`whence explain`: says what in the context caused a token, and how far to trust the answer."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whence.cli.connection import connect
from whence.cli.exits import EXITS, FAILED, OK, UsageError
from whence.cli.explained import format_explanation, format_fact
from whence.cli.explained_page import write_explanation_page
from whence.cli.json_lines import describe_message, format_json
from whence.cli.progress_line import ProgressLine
from whence.cli.render import wants_color
from whence.explaining import ExplainOptions, list_names
from whence.page import check_writable
from whence.summary import escape
from whence.summary.explanations import describe_trust
from whence.v1 import explain_pb2 as pb
from whence.v1 import explanation_pb2

_METHODS = list_names(explanation_pb2.ExplainMethod, "EXPLAIN_METHOD_")
_UNITS = list_names(pb.SegmentUnit, "SEGMENT_UNIT_")
_OPERATORS = list_names(explanation_pb2.AblationOperator, "ABLATION_OPERATOR_")
_PHASES = {
    pb.EXPLAIN_PHASE_WAITING: "other jobs run or wait",
    pb.EXPLAIN_PHASE_LOADING: "loading the weights",
    pb.EXPLAIN_PHASE_SCORES: "computing the scores",
    pb.EXPLAIN_PHASE_TRUST: "measuring the trust",
}

_COMPUTING = (
    *("prompt", "text", "against", "against_id", "method", "segments", "operator", "ablations"),
    *("seed", "max_gap", "corrupted_segment", "no_trust", "html"),
)
"""Arguments that say nothing of what is on record."""

_EPILOG = f"""\
The trust says how well the scores tell what ablations change that the method has not seen. Read it
first: the scores of an explanation with a low or undetermined trust say little.

Without colour, signs say how a part of the context acted: "{{+++ text}}" made what is explained
likelier, "{{- text}}" made it a little less likely.

--json prints the contract's messages, whence.v1.ExplainResponse, one on each line, in protobuf's
JSON mapping.

{EXITS}"""


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `explain` to the command line."""
    parser = commands.add_parser(
        "explain",
        parents=[common],
        help="say what in the context caused a token, and how far to trust the answer",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "generation_id", metavar="ID", nargs="?", help="id of a generation; none for a text"
    )
    _add_target(parser.add_argument_group("what is explained"))
    _add_way(parser.add_argument_group("how"))
    parser.add_argument(
        "--recorded",
        action="store_true",
        help="print the explanations on record of the generation, and compute nothing",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on each line")
    parser.add_argument(
        "--html", metavar="FILE", help="also write the explanation to this file, as a page"
    )
    parser.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colours of the weights (default: on a terminal)",
    )
    parser.set_defaults(run=run_explain)


def _add_target(group: Any) -> None:
    group.add_argument("--step", type=int, metavar="N", help="index of the token")
    group.add_argument(
        "--span",
        type=_parse_span,
        metavar="A:B",
        help="indexes of tokens that are explained as one unit, from A to B - 1",
    )
    group.add_argument(
        "--sequence", type=int, metavar="N", help="index of the sequence (default: 0)"
    )
    group.add_argument(
        "--prompt", metavar="TEXT", help="context of a text, instead of a generation"
    )
    group.add_argument("--text", metavar="TEXT", help="continuation of --prompt that is explained")
    group.add_argument(
        "--against", metavar="TEXT", help="explain why not this text, such as another token"
    )
    group.add_argument("--against-id", type=int, metavar="ID", help="the same, with a token's id")


def _add_way(group: Any) -> None:
    group.add_argument(
        "--method", choices=_METHODS, help="method (default: the server's, see docs/explain.md)"
    )
    group.add_argument(
        "--segments",
        choices=_UNITS,
        help="unit of the context's parts that get one score each (default: sentences, or words "
        "if there are few)",
    )
    group.add_argument(
        "--operator", choices=_OPERATORS, help="way in which parts are taken out of the context"
    )
    group.add_argument(
        "--ablations", type=int, metavar="N", help="number of random ablations of the method"
    )
    group.add_argument("--seed", type=int, metavar="N", help="seed of random ablations")
    group.add_argument(
        "--max-gap", type=float, metavar="SHARE", help="largest gap of integrated gradients"
    )
    group.add_argument(
        "--corrupted-segment",
        type=int,
        metavar="N",
        help="index of the part that patching corrupts, from 0 (default: all parts)",
    )
    group.add_argument(
        "--no-trust", action="store_true", help="omit the measurement of trust, which takes longer"
    )


def run_explain(arguments: argparse.Namespace) -> int:
    """Print the explanation, its trust first, and progress meanwhile.

    Raises:
        UsageError: arguments contradict, or the page cannot be written.
    """
    if arguments.recorded:
        return _print_recorded(arguments)
    options = _read_options(arguments)
    page = _choose_page(arguments.html)
    result: explanation_pb2.Explanation | None = None
    with connect(arguments) as client:
        try:
            following = client.explain(arguments.generation_id, **options)
        except (TypeError, ValueError) as error:
            raise UsageError(str(error)) from error
        with following as events:
            result = _print_events(events, arguments)
    if result is None:
        return FAILED
    if page is not None:
        try:
            write_explanation_page(page, result)
        except OSError as error:
            raise UsageError(f"--html {page}: {error.strerror or error}") from error
    return OK


def _print_recorded(arguments: argparse.Namespace) -> int:
    """Print the explanations on record, those of the sequence and the steps that are given.

    Raises:
        UsageError: no generation is given, or an option that computes something.
    """
    if arguments.generation_id is None:
        raise UsageError("--recorded needs the id of a generation")
    values = {name: getattr(arguments, name) for name in _COMPUTING}
    # 0 is a value.
    given = [name for name, value in values.items() if value is not None and value is not False]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise UsageError(f"--recorded computes nothing, so that it cannot be given with {names}")
    if arguments.step is not None and arguments.span is not None:
        raise UsageError("--step and --span contradict: give one of them")
    with connect(arguments) as client:
        occurrences = client.generations.get(arguments.generation_id).occurrences
    color = wants_color(arguments.color, sys.stdout)
    recorded = [it.explained.explanation for it in occurrences if it.HasField("explained")]
    found = [it for it in recorded if _is_wanted(it.span, arguments)]
    if not found:
        print("no such explanation is on record", file=sys.stderr)
    for number, explanation in enumerate(found):
        if arguments.json:
            print(format_json(describe_message(pb.ExplainResponse(result=explanation))))
            continue
        print("\n" * (number > 0) + "\n".join(format_explanation(explanation, color=color)))
    return OK


def _is_wanted(span: explanation_pb2.ExplainedSpan, arguments: argparse.Namespace) -> bool:
    """Return whether an explanation on record is of the sequence and steps that are given."""
    wanted = arguments.span
    if arguments.step is not None:
        wanted = range(arguments.step, arguments.step + 1)
    if wanted is None and arguments.sequence is None:
        return True
    if span.sequence_index != (arguments.sequence or 0):
        return False
    return wanted is None or range(span.begin_step, span.end_step) == wanted


def _print_events(
    events: Iterator[pb.ExplainResponse], arguments: argparse.Namespace
) -> explanation_pb2.Explanation | None:
    """Print what comes; return the result."""
    color = wants_color(arguments.color, sys.stdout)
    shows_progress = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    line = ProgressLine(sys.stderr)
    shown: explanation_pb2.Explanation | None = None
    try:
        for event in events:
            if arguments.json:
                print(format_json(describe_message(event)), flush=True)
            elif event.HasField("progress"):
                if shows_progress:
                    line.show(_describe_progress(event.progress))
                continue
            kind = event.WhichOneof("event")
            if kind not in {"partial", "result"}:
                continue
            found = event.result if kind == "result" else event.partial
            line.clear()
            if not arguments.json and (kind == "result" or sys.stdout.isatty()):
                _print_explanation(found, shown, color=color)
            shown = found
            if kind == "result":
                return found
    finally:
        line.clear()
    return None


def _print_explanation(
    found: explanation_pb2.Explanation,
    shown: explanation_pb2.Explanation | None,
    *,
    color: bool,
) -> None:
    if shown is not None and sys.stdout.isatty() and list(found.scores) == list(shown.scores):
        # The scores stand above already.
        print(f"\n{format_fact('trust', describe_trust(found))}", flush=True)
        return
    for row in format_explanation(found, color=color):
        print(row, flush=True)


def _describe_progress(progress: pb.ExplainProgress) -> str:
    told = _PHASES.get(progress.phase, "computing")
    if not progress.total:
        return told
    return f"{told}, {progress.done:,} of {progress.total:,} tokens read"


def _read_options(arguments: argparse.Namespace) -> ExplainOptions:
    if arguments.against is not None and arguments.against_id is not None:
        raise UsageError("--against and --against-id contradict: give one of them")
    if arguments.step is not None and arguments.span is not None:
        raise UsageError("--step and --span contradict: give one of them")
    if arguments.generation_id is not None and arguments.step is None and arguments.span is None:
        raise UsageError("give --step N, or --span A:B for several tokens as one unit")
    if arguments.generation_id is None and (arguments.prompt is None or arguments.text is None):
        raise UsageError("give the id of a generation, or --prompt and --text")
    return ExplainOptions(
        step=arguments.step,
        steps=arguments.span,
        sequence=arguments.sequence,
        prompt=arguments.prompt,
        text=arguments.text,
        against=arguments.against if arguments.against_id is None else arguments.against_id,
        method=arguments.method,
        segments=arguments.segments,
        operator=arguments.operator,
        num_ablations=arguments.ablations,
        seed=arguments.seed,
        max_gap=arguments.max_gap,
        corrupted_segment=arguments.corrupted_segment,
        trust=not arguments.no_trust,
    )


def _parse_span(text: str) -> range:
    begin, found, end = text.partition(":")
    if not (found and begin.isdecimal() and end.isdecimal() and int(begin) < int(end)):
        raise argparse.ArgumentTypeError(
            f"{escape(text)!r} is not A:B with A below B, such as 3:8 for the tokens 3 to 7"
        )
    return range(int(begin), int(end))


def _choose_page(given: str | None) -> Path | None:
    if given is None:
        return None
    path = Path(given)
    try:
        check_writable(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"--html {path}: {error}") from None
    return path
