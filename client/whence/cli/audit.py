"""`whence audit`: who did what on the server."""

import argparse
import re
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from whence.audit import ACTIONS, AuditOptions, get_action_name
from whence.cli.connection import connect
from whence.cli.exits import EXITS, OK
from whence.cli.json_lines import describe_message, format_json
from whence.errors import Code
from whence.summary import count, escape
from whence.v1.audit_pb2 import AuditRecord

_EPILOG = f"""\
--json prints the contract's messages, whence.v1.AuditRecord, one on each line, in protobuf's JSON
mapping.

{EXITS}"""


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `audit` to the command line."""
    parser = commands.add_parser(
        "audit",
        parents=[common],
        help="list who did what, newest first",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--limit",
        type=_parse_count,
        default=50,
        metavar="N",
        help="maximum number of records (default: 50)",
    )
    parser.add_argument("--caller", metavar="ID", help="only records of this caller")
    parser.add_argument("--generation", metavar="ID", help="only records about this generation")
    parser.add_argument(
        "--action",
        dest="actions",
        action="append",
        choices=ACTIONS,
        metavar="ACTION",
        help=f"only this action; may be repeated; one of {', '.join(ACTIONS)}",
    )
    parser.add_argument(
        "--since",
        type=_parse_since,
        metavar="TIME",
        help="only later records: a time with a zone, or a length of time before now, as 90m, 12h "
        "or 30d",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on each line")
    parser.set_defaults(run=run_audit)


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError("expected a whole number from 1 on")
    return int(text)


def _parse_since(text: str) -> datetime:
    if found := re.fullmatch(r"([1-9][0-9]{0,6})([mhd])", text):
        unit = {"m": "minutes", "h": "hours", "d": "days"}[found[2]]
        return datetime.now(UTC) - timedelta(**{unit: int(found[1])})
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a time with a zone, as 2027-01-31T00:00:00Z, or a length of time, "
            "as 90m, 12h or 30d"
        )
    return time


def run_audit(arguments: argparse.Namespace) -> int:
    """Print audit records, newest first."""
    options = AuditOptions(
        caller_id=arguments.caller,
        generation_id=arguments.generation,
        actions=arguments.actions,
        start_after=arguments.since,
    )
    with connect(arguments) as client:
        for record in islice(
            client.audit(page_size=min(arguments.limit, 1_000), **options), arguments.limit
        ):
            print(
                format_json(describe_message(record)) if arguments.json else format_record(record)
            )
    return OK


def format_record(record: AuditRecord) -> str:
    """Return a record as one line."""
    parts = [
        record.time.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ"),
        f"{escape(record.caller_id or '-'):16}",
        f"{get_action_name(record.action):12}",
        escape(_name_method(record)),
    ]
    if record.generation_id:
        parts.append(escape(record.generation_id))
    if record.detail:
        parts.append(escape(record.detail))
    if record.num_calls > 1:
        parts.append(count(record.num_calls, "call"))
    if record.is_summary:
        parts.append("(of several kinds)")
    if record.status_code:
        parts.append(_name_status(record.status_code))
    if record.address:
        parts.append(f"from {escape(record.address)}")
    if record.reason:
        parts.append(f"reason: {escape(record.reason)}")
    return "  ".join(parts)


def _name_status(code: int) -> str:
    return Code(code).name if code in list(Code) else str(code)


def _name_method(record: AuditRecord) -> str:
    """Return an RPC's name without its service, or an HTTP request's method and route."""
    is_route = " " in record.method
    return (record.method if is_route else record.method.rpartition("/")[2]) or "-"
