"""One generation of an upstream, as its turns tell it to the front."""

import asyncio
from collections.abc import AsyncIterator

from upstream_cases import ask

from whence_server.domain.decoding import FinishReason, TraceOptions
from whence_server.domain.engine import Admit, Turn
from whence_server.engines.upstream.exchange import UpstreamChunk, UpstreamEnd, UpstreamRequest
from whence_server.engines.upstream.run import UpstreamRun


class Upstream:
    async def generate(self, request: UpstreamRequest, pinned: object) -> AsyncIterator[object]:
        del request, pinned
        yield UpstreamChunk(0, "a", (), FinishReason.LENGTH)
        yield UpstreamEnd()


async def test_a_stop_beside_the_end_does_not_lose_the_end() -> None:
    request = ask()
    has_end, front_is_behind = asyncio.Event(), asyncio.Event()
    turns: list[Turn] = []

    async def put(turn: Turn) -> None:
        if turn.upstream_done:
            has_end.set()
            await front_is_behind.wait()
        turns.append(turn)

    run = UpstreamRun(
        Upstream(),  # type: ignore[arg-type]
        Admit(request.generation_id, [], request.decoding, TraceOptions()),
        request,
        pinned=None,
        computer=None,
        knows_vocabulary=False,
        num_retries=0,
        put=put,
    )
    running = asyncio.create_task(run.run())
    await has_end.wait()
    # A stop string in the text before, which the front has found only now.
    run.stop_sequence(0)
    front_is_behind.set()
    await running
    assert turns[-1].upstream_done
