"""The stage of a show: a server, commands that are run on it, and the spans that they cause."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence_server.config.environment import copy_environment
from whence_server.demo.receiver import Receiver
from whence_server.demo.serving import find_collector, run_server
from whence_server.demo.spans import print_collector, print_spans

_SPANS_S = 20.0


class Stage:
    """A server that is up, for commands of the client.

    Attributes:
        target: address of the server.
        num_generations: number of generations that have been run.
    """

    def __init__(self, target: str, trace_url: str) -> None:
        self.target = target
        self.num_generations = 0
        self._trace_url = trace_url

    async def run(self, *command: str) -> None:
        """Print a `whence` command and run it, with the server's address added.

        Raises:
            SystemExit: the command failed; the status is the command's.
        """
        print("\n$ whence " + " ".join(map(_quote, command)), flush=True)
        links = ("--trace-url", self._trace_url) if command[0] == "generate" else ()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "whence.cli", *command, "--target", self.target, *links),
        )
        if status := await process.wait():
            raise SystemExit(status)
        self.num_generations += command[0] == "generate"


@asynccontextmanager
async def set_stage(
    model: Path, name: str, trace_url: str, head_weights: Path | None = None
) -> AsyncIterator[Stage]:
    """Start a server and a collector; in the end, stop them and print where the spans went.

    If the environment names a collector, the spans go there.

    Args:
        model: directory of the model.
        name: name of the model for clients and spans.
        trace_url: template of links to traces, if the user has a collector; "" for no links.
        head_weights: file of head weights for the sources; None weighs all heads alike.
    """
    own_endpoint = find_collector(copy_environment())
    receiver = Receiver()
    try:
        await receiver.start()
        endpoint = None if own_endpoint else receiver.endpoint
        async with run_server(model, name, endpoint, head_weights) as target:
            stage = Stage(target, trace_url)
            yield stage
            if own_endpoint is None:
                await _wait_for_generations(receiver, stage.num_generations)
        if own_endpoint is None:
            print_spans(receiver.spans)
        else:
            print_collector(own_endpoint, trace_url)
    finally:
        await receiver.close()


def _quote(word: str) -> str:
    return f'"{word}"' if " " in word else word


async def _wait_for_generations(receiver: Receiver, num_generations: int) -> None:
    """Wait for the SERVER spans of `num_generations` generations; print a warning at a timeout."""
    try:
        async with asyncio.timeout(_SPANS_S):
            while sum(map(_is_generation, receiver.spans)) < num_generations:
                await receiver.wait_for(receiver.num_spans + 1)
    except TimeoutError:
        print(f"\nNot all spans arrived within {_SPANS_S:.0f} seconds.", file=sys.stderr)


def _is_generation(span: Span) -> bool:
    return span.kind == Span.SPAN_KIND_SERVER and span.name.endswith("/Generate")
