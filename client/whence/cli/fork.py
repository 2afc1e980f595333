"""`whence fork`: a branch of a recorded generation, beside its parent."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from whence.cli.connection import connect, parse_key_value
from whence.cli.exits import EXITS, FAILED, OK, UsageError
from whence.cli.json_lines import describe_event, format_json
from whence.cli.progress_line import read_events
from whence.cli.render import wants_color
from whence.cli.side_by_side import Comparison, format_rows
from whence.client import Client, Generation
from whence.errors import GenerationFailedError
from whence.forks import ForkOptions, PromptEdit
from whence.generation import FinishReason
from whence.options import OPTIONS
from whence.summary import count, describe_fork, escape
from whence.tokens import Token

_ENDED_BY_OTHERS = {FinishReason.CANCELLED, FinishReason.INTERRUPTED, FinishReason.FAILED}


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `fork` to the command line."""
    parser = commands.add_parser(
        "fork",
        parents=[common],
        help="continue a recorded generation with something changed",
        description="Repeat a recorded generation up to a step, change something, and show what "
        "becomes of it, side by side with the parent. The seed stays the same: what stays equal "
        "shows what mattered.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("generation_id", metavar="GENERATION", help="id of the parent")
    parser.add_argument(
        "--step",
        type=int,
        default=0,
        metavar="N",
        help="number of tokens to repeat; the change is at this step (default: 0)",
    )
    parser.add_argument(
        "--sequence", type=int, default=0, metavar="N", help="sequence to repeat (default: 0)"
    )
    _add_changes(parser)
    _add_output(parser)


def _add_changes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to change; without any, the draws are repeated")
    tokens = group.add_mutually_exclusive_group()
    tokens.add_argument("--token", metavar="TEXT", help="text in the place of the token at --step")
    tokens.add_argument(
        "--token-id",
        dest="token_ids",
        type=int,
        action="append",
        metavar="ID",
        help="token in its place; may be repeated for the tokens after it",
    )
    group.add_argument(
        "--set",
        dest="settings",
        type=_parse_setting,
        action="append",
        metavar="NAME=VALUE",
        help="setting, named as an option of `generate` in Python: temperature=0.5, greedy=true, "
        "stop='[\".\"]'; may be repeated",
    )
    group.add_argument("--seed", type=int, metavar="N", help="another seed")
    group.add_argument(
        "--reset",
        action="append",
        metavar="NAME",
        help="field of the contract's Decoding that takes the model's default, such as "
        "constraint; may be repeated",
    )
    group.add_argument("--prompt", metavar="TEXT", help="another prompt")
    for name, metavar, meaning in (
        ("remove", "BEGIN:END", "leave out these tokens of the prompt"),
        ("replace", "BEGIN:END=TEXT", "put a text in the place of these tokens of the prompt"),
        ("mask", "BEGIN:END=ID", "put a token in the place of each of these of the prompt"),
    ):
        group.add_argument(
            f"--{name}",
            dest="edits",
            type=_EDITS[name],
            action="append",
            metavar=metavar,
            help=f"{meaning}; may be repeated",
        )
    group.add_argument(
        "--label",
        dest="labels",
        action="append",
        type=parse_key_value,
        metavar="K=V",
        help="label of the branch; may be repeated",
    )
    group.add_argument("--generation-id", dest="own_id", metavar="UUID", help="id of the branch")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--json", action="store_true", help="print the branch, one JSON object on each line"
    )
    group.add_argument("--color", choices=["auto", "always", "never"], default="auto")
    group.add_argument(
        "-q", "--quiet", action="store_true", help="print no summary and no progress"
    )


def _parse_setting(text: str) -> tuple[str, Any]:
    name, value = parse_key_value(text)
    name = name.replace("-", "_")
    if name not in OPTIONS or name == "forced":
        known = ", ".join(sorted(OPTIONS.keys() - {"forced"}))
        raise argparse.ArgumentTypeError(f"{name!r} is no setting; those are {known}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _parse_range(text: str) -> tuple[int, int]:
    begin, found, end = text.partition(":")
    if not found or not all(part.isascii() and part.isdecimal() for part in (begin, end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not BEGIN:END, two positions of tokens")
    return int(begin), int(end)


def _parse_removal(text: str) -> PromptEdit:
    begin, end = _parse_range(text)
    return PromptEdit(begin=begin, end=end)


def _parse_replacement(text: str) -> PromptEdit:
    place, value = parse_key_value(text)
    begin, end = _parse_range(place)
    return PromptEdit(begin=begin, end=end, text=value)


def _parse_mask(text: str) -> PromptEdit:
    place, value = parse_key_value(text)
    begin, end = _parse_range(place)
    if not (value.isascii() and value.isdecimal()):
        raise argparse.ArgumentTypeError(f"{value!r} is not the id of a token")
    return PromptEdit(begin=begin, end=end, mask_token_id=int(value))


_EDITS = {"remove": _parse_removal, "replace": _parse_replacement, "mask": _parse_mask}


def run(arguments: argparse.Namespace) -> int:
    """Run a branch; print it beside its parent.

    Raises:
        UsageError: options that contradict, or values that no request can represent.
        WhenceError: the server's answer was an error.
    """
    with connect(arguments) as client, _start(client, arguments) as branch:
        if arguments.json:
            _show_json(branch)
        else:
            _show(client, branch, arguments)
        return FAILED if branch.finish_reason in _ENDED_BY_OTHERS else OK


def _start(client: Client, arguments: argparse.Namespace) -> Generation:
    options: ForkOptions = {
        "step": arguments.step,
        "sequence": arguments.sequence,
        "instead": arguments.token_ids if arguments.token is None else arguments.token,
        "prompt": arguments.prompt,
        "edits": arguments.edits,
        "reset": arguments.reset,
        "labels": dict(arguments.labels or ()),
        "generation_id": arguments.own_id,
        "seed": arguments.seed,
    }
    settings: Any = dict(arguments.settings or ())
    if arguments.seed is not None and "seed" in settings:
        raise UsageError("--seed and --set seed contradict: give one of them")
    try:
        return client.fork(arguments.generation_id, **options | settings)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def _show_json(branch: Generation) -> None:
    try:
        for event in branch.events():
            for fields in describe_event(event, branch):
                print(format_json(fields), flush=True)
    except GenerationFailedError:
        # The last object and the exit status show the failure already.
        return


def _show(client: Client, branch: Generation, arguments: argparse.Namespace) -> None:
    color = wants_color(arguments.color, sys.stdout)
    # Before its tokens are read: they are all there only if it had ended.
    is_running = not client.generations.get(arguments.generation_id).HasField("finished")
    parent = [
        token
        for token in client.generations.steps(arguments.generation_id)
        if token.sequence_index == arguments.sequence
    ]
    comparison = Comparison(parent, is_running=is_running)
    try:
        tokens = _read_tokens(branch, quiet=arguments.quiet)
        for row in format_rows(comparison, tokens, branch, color=color):
            print(row, flush=True)
    finally:
        if branch.started is not None and not arguments.quiet:
            for told in _describe_end(branch, comparison):
                print(told, file=sys.stderr)


def _read_tokens(branch: Generation, *, quiet: bool) -> Iterator[Token]:
    """Yield the tokens of the branch's first sequence."""
    for event in read_events(branch, quiet=quiet):
        for token in branch.tokens_of(event):
            if token.sequence_index == 0:
                yield token


def _describe_end(branch: Generation, comparison: Comparison) -> Iterable[str]:
    assert branch.started is not None  # noqa: S101 - the caller looked
    told = comparison.describe(is_cut_off=branch.finish_reason in {None, *_ENDED_BY_OTHERS})
    yield f"{describe_fork(branch.started)}; {told}"
    for sequence in branch.sequences:
        name = "branch" if len(branch.sequences) == 1 else f"branch {sequence.sequence_index}"
        yield f"{name}: {escape(sequence.text)}"
    yield (
        f"{count(comparison.num_tokens, 'token')}, finished: {branch.finish_reason or 'no'}, "
        f"generation {branch.id}, trace {escape(branch.trace_id) or 'none'}"
    )
