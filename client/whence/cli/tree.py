"""`whence generations tree`: the branches of a generation, and theirs."""

import argparse
from collections.abc import Iterator

from whence.cli.connection import connect
from whence.cli.exits import OK
from whence.cli.json_lines import describe_message, format_json
from whence.cli.render import fit_columns
from whence.client import Client
from whence.errors import NotFoundError
from whence.summary import describe_fork, escape, quote
from whence.v1.trace_pb2 import GetGenerationResponse

MAX_SHOWN = 1_000
"""Maximum number of generations of one tree."""
_TEXT_COLUMNS = 60


def run_tree(arguments: argparse.Namespace) -> int:
    """Print the tree that a generation belongs to, from its oldest ancestor on record."""
    with connect(arguments) as client:
        left = MAX_SHOWN
        for depth, generation in _walk(client, _find_root(client, arguments.generation_id), 0):
            if left == 0:
                print(f"(more than {MAX_SHOWN} generations)")
                break
            left -= 1
            if arguments.json:
                print(format_json({"depth": depth, **describe_message(generation)}))
            else:
                is_asked = generation.summary.generation_id == arguments.generation_id
                print(_format_line(generation, depth, is_asked=is_asked))
    return OK


def _find_root(client: Client, generation_id: str) -> GetGenerationResponse:
    """Return the oldest ancestor of a generation that is on record."""
    found = client.generations.get(generation_id)
    seen = {generation_id}
    while found.started.HasField("fork"):
        parent_id = found.started.fork.parent_generation_id
        if parent_id in seen:
            break
        seen.add(parent_id)
        try:
            found = client.generations.get(parent_id)
        except NotFoundError:
            break  # deleted: its branches go on
    return found


def _walk(
    client: Client, generation: GetGenerationResponse, depth: int
) -> Iterator[tuple[int, GetGenerationResponse]]:
    """Yield a generation and its branches, oldest first, each before its own branches."""
    yield depth, generation
    branches = list(client.generations.list(parent=generation.summary.generation_id))
    for summary in reversed(branches):
        try:
            branch = client.generations.get(summary.generation_id)
        except NotFoundError:
            continue  # deleted since the list was read
        yield from _walk(client, branch, depth + 1)


def _format_line(generation: GetGenerationResponse, depth: int, *, is_asked: bool) -> str:
    summary, started = generation.summary, generation.started
    text = quote(summary.text_preview)
    if started.HasField("fork"):
        told = describe_fork(started)
    else:
        told = f"prompt {quote(summary.prompt_preview)}"
    mark = "* " if is_asked else "  "
    return (
        f"{mark}{'  ' * depth}{escape(summary.generation_id)}  {escape(told)}  "
        f"{fit_columns(text, _TEXT_COLUMNS).rstrip()}"
    )
