"""`whence generate`: generates, and prints tokens as they arrive."""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from whence.cli.chat import add_chat, format_calls, read_input
from whence.cli.connection import connect, parse_json_object, parse_key_value
from whence.cli.constraints import add_constraints, describe_incomplete
from whence.cli.exits import EXITS, FAILED, OK, UsageError
from whence.cli.html import add_html, choose_page_path, save_page
from whence.cli.internals import format_internals, format_missing
from whence.cli.json_lines import FIELDS, describe_event, format_json
from whence.cli.progress_line import read_events
from whence.cli.render import count_terminal_columns, format_heading, format_row, paint, wants_color
from whence.cli.trace_link import MEANING, choose_template, make_trace_link
from whence.client import Client, Generation
from whence.errors import GenerationFailedError
from whence.generation import FinishReason
from whence.options import OPTIONS, GenerateOptions
from whence.summary import count, escape
from whence.tokens import Token
from whence.v1.generation_pb2 import GenerationEvent

_ENDED_BY_OTHERS = {FinishReason.CANCELLED, FinishReason.INTERRUPTED, FinishReason.FAILED}

_LACKS_CONTENT = (
    "warning: a part of the output is missing: the connection broke, and the server no longer held "
    "the text, which the content policy keeps out of its record"
)
_SECONDS = {
    "max_duration_s": "seconds after which the server ends the generation",
    "disconnect_grace_s": "seconds that the generation goes on without a reader",
    "timeout_s": "seconds after which this command ends",
}


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `generate` to the command line."""
    parser = commands.add_parser(
        "generate",
        parents=[common],
        help="continue a prompt",
        description="Continue a prompt, and show the tokens as they arrive.",
        epilog=f"{FIELDS}\n{EXITS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_chat(parser)
    parser.set_defaults(run=run)
    _add_decoding(parser)
    _add_output(parser)


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("choosing tokens")
    group.add_argument(
        "--model", metavar="NAME", help="name of the model (default: the model of the server)"
    )
    group.add_argument(
        "--adapter",
        metavar="NAME",
        help="name of one of the model's adapters; `whence model` lists them",
    )
    group.add_argument(
        "--upstream-parameters",
        type=parse_json_object,
        metavar="JSON",
        help="fields of an upstream's own API, as a JSON object; the upstream receives them "
        "unchanged",
    )
    group.add_argument(
        "--greedy", action="store_true", default=None, help="take the most likely token"
    )
    group.add_argument("--sample", action="store_true", default=None, help="draw at random")
    for name, option in OPTIONS.items():
        if option.flag is not None:
            flag = f"--{name.replace('_', '-')}"
            parse, metavar = _FLAGS[option.flag]
            group.add_argument(flag, type=parse, metavar=metavar, help=option.meaning)
    for name, meaning in _SECONDS.items():
        flag = f"--{name.removesuffix('_s').replace('_', '-')}"
        group.add_argument(flag, dest=name, type=float, metavar="F", help=meaning)
    group.add_argument("-n", type=int, metavar="N", help="number of sequences to return")
    group.add_argument(
        "--early-stopping",
        choices=["when_enough", "never", "heuristic"],
        help="beam search; when to end",
    )
    group.add_argument(
        "--forced", metavar="TEXT", help="choose no tokens: record this continuation"
    )
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be repeated"
    )
    group.add_argument(
        "--stop-token-id",
        dest="stop_token_ids",
        action="append",
        type=int,
        metavar="ID",
        help="end after this token; may be repeated",
    )
    group.add_argument(
        "--bad-word",
        dest="bad_words",
        action="append",
        metavar="TEXT",
        help="text that is never completed; may be repeated",
    )
    group.add_argument(
        "--logit-bias",
        action="append",
        type=_parse_bias,
        metavar="ID=BIAS",
        help="number to add to the logit of a token; may be repeated",
    )
    add_constraints(group)
    group.add_argument(
        "--ignore-eos",
        action="store_true",
        default=None,
        help="continue after the end of the sequence",
    )
    group.add_argument(
        "--no-special-tokens",
        dest="add_special_tokens",
        action="store_false",
        default=None,
        help="add no special tokens to the prompt",
    )
    group.add_argument(
        "--detail",
        choices=["tokens", "decisions", "internals"],
        help="how much to record of each step",
    )
    group.add_argument(
        "--content",
        choices=["full", "tokens", "none"],
        help="content that the server stores and exports: tokens keeps token ids and numbers, none "
        "numbers alone; at most what its --journal-content keeps (default: that)",
    )
    group.add_argument(
        "--trace-prompt",
        action="store_true",
        default=None,
        help="record the tokens of the prompt too",
    )
    group.add_argument(
        "--generation-id",
        metavar="UUID",
        help="id of the generation; the same request with the same id joins it",
    )
    group.add_argument(
        "--label",
        dest="labels",
        action="append",
        type=parse_key_value,
        metavar="K=V",
        help="label of the generation; may be repeated",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--candidates",
        action="store_true",
        help="print each token and its runners-up on a line; with --trace-prompt, the prompt's too",
    )
    form.add_argument(
        "--json", action="store_true", help="print one JSON object on each line; see below"
    )
    group.add_argument(
        "--internals",
        action="store_true",
        help="like --candidates, with the sources and layers of each token; sets --detail "
        "internals; works with --json too",
    )
    add_html(group)
    group.add_argument("--color", choices=["auto", "always", "never"], default="auto")
    group.add_argument(
        "-q",
        "--quiet",
        action="store_true",
        help="print no summary and no progress on standard error",
    )
    group.add_argument("--trace-url", metavar="TEMPLATE", help=MEANING)


def run(arguments: argparse.Namespace) -> int:
    """Run a generation; print its tokens and a summary.

    Raises:
        UsageError: options that contradict, or values that no request can represent.
        WhenceError: the server's answer was an error.
    """
    template = _choose_trace_url(arguments)
    begun = time.monotonic()
    path = choose_page_path(arguments)
    with connect(arguments) as client, _start(client, arguments) as generation:
        kept: list[Token] | None = None if path is None else []
        try:
            events = read_events(generation, quiet=arguments.quiet)
            _show(_keep_tokens(events, generation, kept), generation, arguments)
        finally:
            # A failed generation has a summary and a page, too.
            if generation.started is not None and generation.started.unrecorded_reason:
                told = _format_unrecorded_reason(generation.started.unrecorded_reason)
                print(told, file=sys.stderr)
            if generation.lacks_content:
                print(_LACKS_CONTENT, file=sys.stderr)
            if generation.num_unrecorded_tokens:
                print(_format_unrecorded(generation), file=sys.stderr)
            if generation.finished is not None and not arguments.quiet:
                for told in format_calls(generation):
                    print(told, file=sys.stderr)
                print(_format_summary(generation, time.monotonic() - begun), file=sys.stderr)
                for told in describe_incomplete(generation.sequences):
                    print(told, file=sys.stderr)
                if link := make_trace_link(template, generation):
                    print(link, file=sys.stderr)
            if path is not None and kept is not None and generation.started is not None:
                save_page(
                    path,
                    client,
                    generation.started,
                    generation.finished,
                    [token.step for token in _select_recorded(kept, generation)],
                    prompt_steps=[token.step for token in generation.prompt_tokens],
                )
        return FAILED if generation.finish_reason in _ENDED_BY_OTHERS else OK


def _show(
    events: Iterator[tuple[GenerationEvent, list[Token]]],
    generation: Generation,
    arguments: argparse.Namespace,
) -> None:
    color = wants_color(arguments.color, sys.stdout)
    if arguments.json:
        _show_json((event for event, _ in events), generation)
    elif arguments.candidates or arguments.internals:
        _show_table(events, generation, color=color, internals=arguments.internals)
    else:
        _show_text((token for _, tokens in events for token in tokens), color=color)


def _keep_tokens(
    events: Iterator[GenerationEvent], generation: Generation, kept: list[Token] | None
) -> Iterator[tuple[GenerationEvent, list[Token]]]:
    """Yield the generation's events with their tokens, which are added to `kept` if given."""
    for event in events:
        tokens = generation.tokens_of(event)
        if kept is not None:
            kept += tokens
        yield event, tokens


def _choose_trace_url(arguments: argparse.Namespace) -> str:
    try:
        return choose_template(arguments.trace_url)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _start(client: Client, arguments: argparse.Namespace) -> Generation:
    options: dict[str, Any] = {
        name: value
        for name in GenerateOptions.__annotations__
        if (value := getattr(arguments, name, None)) is not None
    }
    if arguments.internals and options.setdefault("detail", "internals") != "internals":
        raise UsageError(
            f"--internals and --detail {arguments.detail} contradict: leave one of them out"
        )
    for name in ("labels", "logit_bias"):
        if name in options:
            options[name] = dict(options[name])
    try:
        prompt, of_chat = read_input(arguments)
        return client.generate(prompt, **options | of_chat)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from None


def _show_text(tokens: Iterable[Token], *, color: bool) -> None:
    """Print the first sequence as it arrives, and then the others."""
    later: dict[int, list[str]] = {}
    try:
        for token in tokens:
            shown = _format_token(token, color=color)
            if token.sequence_index == 0:
                print(shown, end="", flush=True)
            else:
                later.setdefault(token.sequence_index, []).append(shown)
    finally:
        print(flush=True)
    for sequence_index, texts in sorted(later.items()):
        print(f"--- sequence {sequence_index} ---\n{''.join(texts)}")


def _format_token(token: Token, *, color: bool) -> str:
    return paint(escape(token.text), token.probability) if color else escape(token.text)


def _show_table(
    events: Iterable[tuple[GenerationEvent, list[Token]]],
    generation: Generation,
    *,
    color: bool,
    internals: bool,
) -> None:
    """Print the prompt's tokens, if they are recorded, and then the generated ones."""
    num_prompt_tokens = 0
    begun = False
    for event, tokens in events:
        if event.WhichOneof("event") == "prompt_steps":
            if not num_prompt_tokens:
                print(format_heading(prompt=True))
            for token in generation.prompt_tokens[num_prompt_tokens:]:
                print(_format_row(token, color=color, prompt=True), flush=True)
            num_prompt_tokens = len(generation.prompt_tokens)
        if tokens and not begun:
            begun = True
            print(format_heading())
            if internals and generation.started is not None:
                for told in format_missing(generation.started.unavailable):
                    print(told)
        for token in tokens:
            print(_format_row(token, color=color), flush=True)
            for told in format_internals(token, color=color) if internals else ():
                print(told, flush=True)


def _format_row(token: Token, *, color: bool, prompt: bool = False) -> str:
    # Asked for each row: a terminal may change its width.
    num_columns = count_terminal_columns(sys.stdout)
    return format_row(token, color=color, prompt=prompt, num_columns=num_columns)


def _show_json(events: Iterable[GenerationEvent], generation: Generation) -> None:
    try:
        for event in events:
            for fields in describe_event(event, generation):
                print(format_json(fields), flush=True)
    except GenerationFailedError:
        # The last object and the exit status show the failure already.
        return


def _format_summary(generation: Generation, elapsed_s: float) -> str:
    finished = generation.finished
    num_tokens = 0 if finished is None else finished.num_generated_tokens
    return (
        f"{count(num_tokens, 'token')}, {num_tokens / elapsed_s:.1f} tokens/s, "
        f"finished: {generation.finish_reason or 'no'}, "
        f"generation {generation.id}, trace {escape(generation.trace_id) or 'none'}"
    )


def _format_unrecorded(generation: Generation) -> str:
    num_tokens = generation.num_unrecorded_tokens
    tokens = "1 token is" if num_tokens == 1 else f"{num_tokens} tokens are"
    return (
        f"warning: the last {tokens} not on record: the server died before its newest entries were "
        "on disk (--durability strict sends a token only once it is on disk)"
    )


def _format_unrecorded_reason(reason: str) -> str:
    return (
        "warning: this generation is not on record: the server cannot write its journal at present "
        f"({escape(reason)}), and serves all the same (--record-failure open)"
    )


def _select_recorded(received: list[Token], generation: Generation) -> list[Token]:
    """Return the received tokens that are on record: all but the last ones."""
    return received[: len(received) - generation.num_unrecorded_tokens]


def _parse_bias(text: str) -> tuple[int, float]:
    token_id, bias = parse_key_value(text)
    return int(token_id), float(bias)


def _parse_token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text[:64]!r} is no list of token ids, such as 1,2,3"
        ) from None


_FLAGS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (int, "I"),
    float: (float, "F"),
    list: (_parse_token_ids, "ID,..."),
    str: (str, "TEXT"),
}
"""Parser of a flag's value and its placeholder in the help, by `Option.flag`."""
