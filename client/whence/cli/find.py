"""`whence find`: the generations that contain a text."""

import argparse
import sys
from datetime import UTC
from itertools import islice
from typing import Any

from whence.cli.connection import connect, parse_key_value
from whence.cli.exits import EXITS, OK
from whence.cli.json_lines import describe_message, format_json
from whence.summary import escape, quote
from whence.v1.trace_pb2 import SearchHit, SearchPart

_EPILOG = f"""\
Letters count without their case, and white space as one space. Exact hits come first, then those
that have most of the text: the share is that of its different sequences of three characters.

--json prints the contract's messages, whence.v1.SearchHit, one on each line, in protobuf's JSON
mapping.

{EXITS}"""


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `find` to the command line."""
    parser = commands.add_parser(
        "find",
        parents=[common],
        help="find the generations that contain a text, or most of it",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", metavar="TEXT", help='at least 20 characters; "-" reads them')
    parser.add_argument(
        "--limit",
        type=_parse_count,
        default=20,
        metavar="N",
        help="maximum number of generations (default: 20)",
    )
    parser.add_argument("--model", metavar="NAME", help="only generations of this model")
    parser.add_argument(
        "--label",
        dest="labels",
        action="append",
        type=parse_key_value,
        metavar="K=V",
        help="only generations with this label; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on each line")
    parser.set_defaults(run=run_find)


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1_000):
        raise argparse.ArgumentTypeError("expected a whole number from 1 to 1000")
    return int(text)


def run_find(arguments: argparse.Namespace) -> int:
    """Print the hits, exact ones first."""
    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    options = {"model": arguments.model, "labels": dict(arguments.labels or ()) or None}
    given: Any = {name: value for name, value in options.items() if value is not None}
    is_empty = True
    with connect(arguments) as client:
        page_size = min(arguments.limit, 100)
        hits = client.generations.search(text, page_size=page_size, when_cut=_say_cut, **given)
        for hit in islice(hits, arguments.limit):
            is_empty = False
            print(format_json(describe_message(hit)) if arguments.json else _format_hit(hit))
    if is_empty:
        print("no generation on record contains this text, or most of it", file=sys.stderr)
    return OK


def _say_cut() -> None:
    print(
        "not all could be searched: too many generations have a part of the text; --model and "
        "--label search others",
        file=sys.stderr,
    )


def _format_hit(hit: SearchHit) -> str:
    """Return a hit as two lines: where it is, and what stands there."""
    summary = hit.summary
    begun = summary.start_time.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    told = [
        f"{hit.share:4.0%}",
        summary.generation_id,
        begun,
        escape(summary.model),
        _name_place(hit),
    ]
    shown = quote(f"{hit.before}»{hit.match}«{hit.after}")
    return f"{'  '.join(told)}\n      {shown}"


def _name_place(hit: SearchHit) -> str:
    if hit.part == SearchPart.SEARCH_PART_PROMPT:
        return f"prompt, byte {hit.begin_byte}"
    if hit.HasField("step_index"):
        return f"token {hit.sequence_index}/{hit.step_index}"
    return f"sequence {hit.sequence_index}, byte {hit.begin_byte}"
