"""The load over HTTP: a client process that reads streams of OpenAI's API.

Reads a JSON command a line ({"num_streams": ..., "num_new_tokens": ..., "num_logprobs": ...}) and
answers each with a JSON line of tokens, seconds and times to the first token. A command with
"num_idle" opens as many further streams and leaves them open, unread. "extra" are fields of the
requests by which a server takes what OpenAI's API does not have; without it they are whence's.
"""

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp
from workloads import TEMPERATURE, TOP_P, prompt


def make_body(index: int, vocabulary_size: int, command: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": "bench",
        "prompt": prompt(index, vocabulary_size, command.get("num_prompt_tokens", 32)),
        "max_tokens": command["num_new_tokens"],
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "top_k": 0,
        "seed": index,
        "logprobs": command.get("num_logprobs"),
        "stream": True,
        "stream_options": {"include_usage": True},
        **command.get("extra", {"whence": {"ignore_eos": True}}),
    }


async def stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> list[float]:
    """Read a stream; say when its first event with a choice came, and its number of tokens."""
    first, num_tokens = 0.0, 0
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not first and line.startswith(b"data:"):
                first = time.perf_counter()
            if b'"usage":{' in line:
                num_tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    return [first, num_tokens]


async def main(url: str, vocabulary_size: int) -> None:
    loop = asyncio.get_running_loop()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        print(json.dumps({"ready": True}), flush=True)
        idle = []
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            command = json.loads(line)
            if "num_idle" in command:
                body = make_body(0, vocabulary_size, command)
                posts = (
                    session.post(f"{url}/v1/completions", json=body)
                    for _ in range(command["num_idle"])
                )
                idle += [await post for post in posts]
                print(json.dumps({"num_idle": len(idle)}), flush=True)
                continue
            bodies = [make_body(i, vocabulary_size, command) for i in range(command["num_streams"])]
            started = time.perf_counter()
            done = await asyncio.gather(*(stream(session, url, body) for body in bodies))
            answer = {
                "tokens": sum(num for _, num in done),
                "seconds": time.perf_counter() - started,
                "first_s": sorted(first - started for first, _ in done),
            }
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
