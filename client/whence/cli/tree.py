"""`whence generations tree`: the branches of a generation, and theirs."""

import argparse
from collections.abc import Iterator
from itertools import islice

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
        root = _find_root(client, arguments.generation_id)
        for depth, generation in walk_branches(client, root, left):
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


def walk_branches(
    client: Client, root: GetGenerationResponse, most: int = MAX_SHOWN
) -> Iterator[tuple[int, GetGenerationResponse]]:
    """Yield a generation and its branches with their depths, oldest first, each before its own.

    Args:
        client: client of the server.
        root: the generation.
        most: number of generations that are wanted; one more is yielded if there is one.
    """
    left = most + 1
    # A search makes chains of more branches than Python has frames.
    stack: list[tuple[int, GetGenerationResponse | str]] = [(0, root)]
    while stack and left:
        depth, found = stack.pop()
        if isinstance(found, str):
            try:
                found = client.generations.get(found)
            except NotFoundError:
                continue  # deleted since the list was read
        yield depth, found
        left -= 1
        listed = client.generations.list(parent=found.summary.generation_id)
        # They come newest first: the last one of the stack is the oldest.
        stack += [(depth + 1, summary.generation_id) for summary in islice(listed, left)]


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
