"""The load: a client process that reads streams, each over its own channel.

Reads a JSON command a line ({"num_streams": ..., "num_new_tokens": ..., "detail": ...}) and
answers each with a JSON line of tokens, seconds and times to the first token; "together" has
tokens and seconds from when the last stream has begun until the first one ends.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import grpc
from workloads import TEMPERATURE, TOP_P, prompt

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc

DETAILS = {
    "tokens": g.TRACE_DETAIL_TOKENS,
    "decisions": g.TRACE_DETAIL_DECISIONS,
    "internals": g.TRACE_DETAIL_INTERNALS,
}


def request(
    index: int, vocabulary_size: int, num_new_tokens: int, detail: str, num_prompt_tokens: int
) -> g.GenerateRequest:
    return g.GenerateRequest(
        tokens=g.TokenInput(token_ids=prompt(index, vocabulary_size, num_prompt_tokens)),
        decoding=g.Decoding(
            sample=g.Sample(temperature=TEMPERATURE, top_p=TOP_P, top_k=0, seed=index),
            max_new_tokens=num_new_tokens,
            ignore_eos=True,
        ),
        trace=g.TraceOptions(detail=DETAILS[detail]),
    )


def open_channel(target: str) -> grpc.aio.Channel:
    """Open a channel, with TLS if BENCH_CA names the CA."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if "BENCH_CA" not in os.environ:
        return grpc.aio.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(Path(os.environ["BENCH_CA"]).read_bytes())
    return grpc.aio.secure_channel(target, credentials, options=options)


def make_metadata() -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call: the token BENCH_TOKEN, if there is one."""
    token = os.environ.get("BENCH_TOKEN")
    return (("authorization", f"Bearer {token}"),) if token else ()


async def stream(channel: grpc.aio.Channel, wanted: g.GenerateRequest) -> list[tuple[float, int]]:
    """Read a stream; says when its messages came, and with how many tokens."""
    came = []
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    async for response in stub.Generate(wanted, metadata=make_metadata()):
        event = response.event
        if event.HasField("steps"):
            came.append((time.perf_counter(), len(event.steps.steps)))
        if event.HasField("finished") and event.finished.HasField("failure"):
            raise SystemExit(event.finished.failure.message)
    return came


def count_together(streams: list[list[tuple[float, int]]]) -> dict[str, float]:
    """Return tokens and seconds from the last first message to the first last message."""
    begin, end = max(came[0][0] for came in streams), min(came[-1][0] for came in streams)
    tokens = sum(num for came in streams for at, num in came if begin < at <= end)
    return {"tokens": tokens, "seconds": max(end - begin, 0.0)}


async def main(target: str, vocabulary_size: int) -> None:
    loop = asyncio.get_running_loop()
    print(json.dumps({"ready": True}), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        channels = [open_channel(target) for _ in range(command["num_streams"])]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        wanted = [
            request(
                i,
                vocabulary_size,
                command["num_new_tokens"],
                command.get("detail", "decisions"),
                command.get("num_prompt_tokens", 32),
            )
            for i in range(len(channels))
        ]
        started = time.perf_counter()
        done = await asyncio.gather(*(stream(c, w) for c, w in zip(channels, wanted, strict=True)))
        seconds = time.perf_counter() - started
        await asyncio.gather(*(channel.close() for channel in channels))
        answer = {
            "tokens": sum(num for came in done for _, num in came),
            "seconds": seconds,
            "first_s": sorted(came[0][0] - started for came in done),
            "together": count_together(done),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
