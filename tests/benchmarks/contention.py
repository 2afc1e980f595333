"""The load of `latency.py`: streams, then a long prompt, then a short request, over gRPC.

Reads a JSON command a line ({"num_streams": ..., "long_prompt_tokens": ...}) and answers each
with a JSON line.
"""

import asyncio
import json
import sys
import time
from itertools import pairwise

import grpc
from load import request

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc

NUM_STREAM_TOKENS = 4_000
"""More tokens than a stream gets while it is measured; the streams are then cancelled."""
CHUNK_TOKENS = 512


class Arrivals:
    """Times at which messages with steps arrived."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._came = asyncio.Event()

    def add(self) -> None:
        self.times.append(time.perf_counter())
        self._came.set()

    async def more_than(self, count: int) -> None:
        while len(self.times) <= count:
            self._came.clear()
            await self._came.wait()


async def arrivals(channel: grpc.aio.Channel, wanted: g.GenerateRequest, found: Arrivals) -> None:
    """Note when each message with steps comes."""
    async for response in generation_pb2_grpc.GenerationServiceStub(channel).Generate(wanted):
        if response.event.HasField("steps"):
            found.add()


async def first_token_s(channel: grpc.aio.Channel, wanted: g.GenerateRequest) -> float:
    started = time.perf_counter()
    found = Arrivals()
    await arrivals(channel, wanted, found)
    return found.times[0] - started


async def measure(
    target: str, vocabulary_size: int, num_streams: int, long_prompt_tokens: int
) -> dict[str, object]:
    channels = [
        grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(num_streams + 2)
    ]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    arrived = [Arrivals() for _ in range(num_streams)]
    streams = [
        asyncio.create_task(
            arrivals(
                channels[i],
                request(i, vocabulary_size, NUM_STREAM_TOKENS, "decisions", 32),
                arrived[i],
            )
        )
        for i in range(num_streams)
    ]
    await asyncio.gather(*(found.more_than(10) for found in arrived))
    begun = time.perf_counter()
    long = asyncio.create_task(
        first_token_s(
            channels[-1], request(98, vocabulary_size, 1, "decisions", long_prompt_tokens)
        )
    )
    # The long prompt is being read once its first chunk has delayed a stream.
    await arrived[0].more_than(len(arrived[0].times) + 1)
    short_s = await first_token_s(channels[-2], request(99, vocabulary_size, 1, "decisions", 32))
    long_s = await long
    ended = time.perf_counter()
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    await asyncio.gather(*(channel.close() for channel in channels))
    during = [[at for at in found.times if begun <= at <= ended] for found in arrived]
    gaps = [b - a for found in during for a, b in pairwise(found)]
    num_turns = long_prompt_tokens / CHUNK_TOKENS
    return {"short_s": short_s, "long_s": long_s, "turn_s": long_s / num_turns, "gaps_s": gaps}


async def main(target: str, vocabulary_size: int) -> None:
    loop = asyncio.get_running_loop()
    print(json.dumps({"ready": True}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await measure(target, vocabulary_size, **json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
