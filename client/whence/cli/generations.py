"""`whence generations`: recorded generations of the server."""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from whence.cli.bundles import add_export, run_export
from whence.cli.chat import format_call
from whence.cli.connection import connect, parse_key_value
from whence.cli.exits import EXITS, OK, UsageError
from whence.cli.html import add_html, choose_page_path, save_page
from whence.cli.json_lines import FIELDS, describe_message, describe_token, format_json
from whence.cli.occurrences import list_occurrences
from whence.cli.one_step import format_step
from whence.cli.render import (
    count_terminal_columns,
    fit_columns,
    format_heading,
    format_row,
    wants_color,
)
from whence.cli.tree import run_tree
from whence.client import Client
from whence.content import explain_policy
from whence.generation import FinishReason
from whence.outputs import convert_tool_call
from whence.summary import (
    count,
    describe_fork,
    describe_upstream,
    escape,
    find_signer,
    quote,
    summarise_grades,
)
from whence.tokens import Token
from whence.v1.generation_pb2 import GenerationStarted
from whence.v1.trace_pb2 import (
    GenerationSummary,
    GetGenerationResponse,
    WatchGenerationsResponse,
)

_EPILOG = f"""\
--json prints the contract's messages, one on each line, in protobuf's JSON mapping:
GenerationSummary (list), GetGenerationResponse (show), WatchGenerationsResponse (watch). The steps
of `show --steps` and `--step` are the token objects of `whence generate`:

{FIELDS}
{EXITS}"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `generations` and its own commands to the command line."""
    parser = commands.add_parser("generations", help="list, show, watch and delete generations")
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
        return action

    listing = add("list", run_list, "recorded generations, newest first")
    listing.add_argument(
        "--limit",
        type=_parse_count,
        default=20,
        metavar="N",
        help="maximum number of generations (default: 20)",
    )
    showing = add("show", run_show, "one generation with all its details")
    which = showing.add_mutually_exclusive_group()
    which.add_argument("--steps", action="store_true", help="also print each token on a line")
    which.add_argument(
        "--step",
        type=_parse_index,
        metavar="N",
        help="print everything about this step; the first is 0",
    )
    showing.add_argument(
        "--prompt",
        action="store_true",
        help="--step is a token of the prompt, if the prompt was recorded",
    )
    showing.add_argument(
        "--sequence", type=_parse_index, metavar="N", help="sequence of --step (default: 0)"
    )
    add_html(showing)
    showing.add_argument("--color", choices=["auto", "always", "never"], default="auto")
    branching = add("tree", run_tree, "the branches of a generation, and theirs")
    watching = add("watch", run_watch, "generations as they start and finish")
    watching.add_argument(
        "--steps", action="store_true", help="also print every event of each generation"
    )
    watching.add_argument(
        "--after", default="", metavar="POSITION", help="continue after this position"
    )
    add_export(add("export", run_export, "write a bundle that is checked without the server"))
    deleting = add("delete", run_delete, "destroy the content of a generation irrecoverably")
    deleting.add_argument("--yes", action="store_true", help="delete without asking")
    for action in (listing, watching):
        action.add_argument("--model", metavar="NAME", help="only generations of this model")
        action.add_argument("--trace-id", metavar="ID", help="only generations of this trace")
        action.add_argument(
            "--label",
            dest="labels",
            action="append",
            type=parse_key_value,
            metavar="K=V",
            help="only generations with this label; may be repeated",
        )
        action.add_argument(
            "--parent", metavar="ID", help="only branches of this generation (`whence fork`)"
        )
    for action in (showing, branching, deleting):
        action.add_argument("generation_id", metavar="ID")
    for action in (listing, showing, branching, watching):
        action.add_argument(
            "--json", action="store_true", help="print one JSON object on each line"
        )


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError("expected a whole number from 1 on")
    return int(text)


def _parse_index(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError("expected a whole number from 0 on")
    return int(text)


def run_list(arguments: argparse.Namespace) -> int:
    """Print summaries, newest first."""
    with connect(arguments) as client:
        found = client.generations.list(
            page_size=min(arguments.limit, 100), **_make_filter_options(arguments)
        )
        for summary in islice(found, arguments.limit):
            print(
                format_json(describe_message(summary))
                if arguments.json
                else _format_summary(summary)
            )
    return OK


def run_show(arguments: argparse.Namespace) -> int:
    """Print one generation, with its steps or one of them on request; write its page.

    Raises:
        UsageError: the step does not exist, or the page cannot be written.
    """
    if arguments.sequence is not None and arguments.step is None:
        raise UsageError("--sequence needs --step: give both")
    if arguments.prompt and (arguments.step is None or arguments.sequence is not None):
        raise UsageError("--prompt needs --step, and contradicts --sequence")
    path = choose_page_path(arguments)
    with connect(arguments) as client:
        generation = client.generations.get(arguments.generation_id)
        print(
            format_json(describe_message(generation))
            if arguments.json
            else _format_details(generation)
        )
        if arguments.steps:
            _show_steps(client, arguments, with_prompt=generation.started.effective_trace.prompt)
        elif arguments.step is not None:
            _show_step(client, arguments)
        if path is not None:
            _save(path, client, generation)
    return OK


def _show_steps(client: Client, arguments: argparse.Namespace, *, with_prompt: bool) -> None:
    color = wants_color(arguments.color, sys.stdout)
    for prompt in (True, False) if with_prompt else (False,):
        if not arguments.json:
            print(f"\n{format_heading(prompt=prompt)}")
        for token in client.generations.steps(arguments.generation_id, prompt=prompt):
            if arguments.json:
                print(_format_token(token, prompt=prompt))
            else:
                num_columns = count_terminal_columns(sys.stdout)
                print(format_row(token, color=color, prompt=prompt, num_columns=num_columns))


def _show_step(client: Client, arguments: argparse.Namespace) -> None:
    token = _find_step(client, arguments)
    if arguments.json:
        print(_format_token(token, prompt=arguments.prompt))
        return
    print()
    color = wants_color(arguments.color, sys.stdout)
    num_columns = count_terminal_columns(sys.stdout)
    for told in format_step(token, color=color, prompt=arguments.prompt, num_columns=num_columns):
        print(told)


def _find_step(client: Client, arguments: argparse.Namespace) -> Token:
    sequence_index = arguments.sequence or 0
    num_steps = 0
    for token in client.generations.steps(arguments.generation_id, prompt=arguments.prompt):
        if token.sequence_index != sequence_index:
            continue
        if token.index == arguments.step:
            return token
        num_steps += 1
    whose = "the prompt" if arguments.prompt else f"sequence {sequence_index}"
    raise UsageError(f"{whose} has no step {arguments.step}: {num_steps} are recorded")


def _save(path: Path, client: Client, generation: GetGenerationResponse) -> None:
    started = generation.started
    finished = generation.finished if generation.HasField("finished") else None
    steps = [token.step for token in client.generations.steps(started.generation_id)]
    of_prompt = client.generations.steps(started.generation_id, prompt=True)
    prompt_steps = [token.step for token in of_prompt] if started.effective_trace.prompt else []
    save_page(path, client, started, finished, steps, prompt_steps=prompt_steps)


def _format_token(token: Token, *, prompt: bool) -> str:
    return format_json({"event": "prompt_token" if prompt else "token", **describe_token(token)})


def run_watch(arguments: argparse.Namespace) -> int:
    """Print events as they happen, until interrupted."""
    with (
        connect(arguments) as client,
        client.generations.watch(
            lifecycle_only=not arguments.steps,
            after_position=arguments.after,
            **_make_filter_options(arguments),
        ) as events,
    ):
        for event in events:
            print(
                format_json(describe_message(event)) if arguments.json else _format_event(event),
                flush=True,
            )
    return OK


def run_delete(arguments: argparse.Namespace) -> int:
    """Delete a generation after confirmation."""
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "standard input is not a terminal: give --yes to delete without confirmation"
            )
        answer = input(f"Destroy the content of {escape(arguments.generation_id)} for good? [y/N] ")
        if answer.strip().lower() not in {"y", "yes"}:
            raise UsageError("nothing was deleted")
    with connect(arguments) as client:
        client.generations.delete(arguments.generation_id)
    return OK


def _make_filter_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": arguments.model,
        "trace_id": arguments.trace_id,
        "parent": arguments.parent,
        "labels": dict(arguments.labels or ()),
    }


def _format_summary(summary: GenerationSummary) -> str:
    preview = quote(summary.prompt_preview + summary.text_preview)
    return (
        f"{escape(summary.generation_id):36}  {_format_time(summary.start_time)}  "
        f"{_format_reason(summary):>15}  {summary.num_generated_tokens:>6}  "
        f"{fit_columns(preview, 60).rstrip()}"
    )


def _describe_processors(started: GenerationStarted) -> dict[str, str]:
    """Return the names of the logits processors; nothing for an upstream, which shows none."""
    if started.HasField("upstream"):
        return {}
    return {"processors": ", ".join(started.processor_names) or "none"}


def _format_details(generation: GetGenerationResponse) -> str:
    summary, started = generation.summary, generation.started
    fields = {
        "generation": summary.generation_id,
        "trace": started.trace_id or summary.trace_id,
        "model": f"{summary.model} ({started.model_digest or 'digest unknown'})",
        **_describe_adapter(started),
        **_describe_observation(started),
        **_describe_branch(started),
        "training run": _format_training_run(started),
        "started": _format_time(summary.start_time),
        "finished": _format_reason(summary),
        "tokens": f"{_count_prompt_tokens(generation)} prompt{_format_cached(generation)}, "
        f"{summary.num_generated_tokens} generated",
        **_describe_processors(started),
        **_describe_policy(started),
        **_describe_statement(generation),
        **{f"label {key}": value for key, value in sorted(summary.labels.items())},
        **{f"no {part}": reason for part, reason in sorted(started.unavailable.items())},
        "prompt": started.prompt or summary.prompt_preview,
    }
    if generation.HasField("finished"):
        if generation.finished.HasField("failure"):
            failure = generation.finished.failure
            fields["failure"] = f"{failure.message} ({failure.reason})"
        for sequence in generation.finished.sequences:
            fields[f"sequence {sequence.sequence_index}"] = sequence.text
            for call in map(convert_tool_call, sequence.tool_calls):
                fields[f"tool call {call.id}"] = format_call(call)
    rows = (*fields.items(), *list_occurrences(started, list(generation.occurrences)))
    return "\n".join(f"{escape(name):<12}  {escape(value)}" for name, value in rows)


def _describe_policy(started: GenerationStarted) -> dict[str, str]:
    kept = explain_policy(started)
    return {"content kept": kept} if kept else {}


def _describe_statement(generation: GetGenerationResponse) -> dict[str, str]:
    key_id = find_signer(generation.finished)
    return {"signed": f"by key {key_id}"} if key_id else {}


def _describe_adapter(started: GenerationStarted) -> dict[str, str]:
    if not started.HasField("adapter"):
        return {}
    return {"adapter": f"{started.adapter.name} ({started.adapter.digest})"}


def _describe_branch(started: GenerationStarted) -> dict[str, str]:
    if not started.HasField("fork"):
        return {}
    return {"branch of": f"{started.fork.parent_generation_id}, {describe_fork(started)}"}


def _describe_observation(started: GenerationStarted) -> dict[str, str]:
    facts = {}
    if started.HasField("upstream"):
        facts["upstream"] = describe_upstream(started.upstream)
    if started.HasField("observation"):
        facts["grades"] = summarise_grades(started)
    return facts


def _count_prompt_tokens(generation: GetGenerationResponse) -> int:
    # An upstream may say it only at the end.
    return generation.finished.num_prompt_tokens or generation.summary.num_prompt_tokens


def _format_cached(generation: GetGenerationResponse) -> str:
    num_cached = generation.finished.num_cached_prompt_tokens
    return f" ({num_cached} from the prefix cache)" if num_cached else ""


def _format_training_run(started: GenerationStarted) -> str:
    if not started.HasField("training_run"):
        return "unknown"
    return f"{started.training_run.training_run_id}, step {started.training_run.step:,}"


def _format_event(watched: WatchGenerationsResponse) -> str:
    event = watched.event
    kind = event.WhichOneof("event") or "unknown"
    told = f"{escape(watched.generation_id):36}  {kind:12}"
    match kind:
        case "started":
            return f"{told}  {escape(event.started.model)}"
        case "finished":
            reason = FinishReason.from_wire(event.finished.finish_reason)
            return f"{told}  {reason}, {count(event.finished.num_generated_tokens, 'token')}"
        case "steps":
            return f"{told}  {quote(''.join(step.text for step in event.steps.steps))}"
        case _:
            return told.rstrip()


def _format_reason(summary: GenerationSummary) -> str:
    if not summary.HasField("finish_reason"):
        return "running"
    return FinishReason.from_wire(summary.finish_reason)


def _format_time(timestamp: Timestamp) -> str:
    return timestamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ")
