"""Server that answers as vLLM does, for tests of its adapter."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from fake_upstream import FakeUpstream, make_events, serving, streaming

MODELS = {
    "data": [{"id": "smol", "owned_by": "vllm", "root": "/models/smol", "max_model_len": 2048}]
}
RAW = {"token_id:7042": -0.25, "token_id:260": -2.5}


def completion(
    text: str, ids: list[int], tops: list[dict[str, float]], **more: Any
) -> dict[str, Any]:
    """Return a chunk of a completion; the first of each table is the chosen token."""
    logprobs = {
        "text_offset": [0] * len(ids),
        "tokens": [f"token_id:{number}" for number in ids],
        "token_logprobs": [
            top.get(f"token_id:{number}", -3.0) for number, top in zip(ids, tops, strict=True)
        ],
        "top_logprobs": tops,
    }
    choice = {"index": 0, "text": text, "logprobs": logprobs, "token_ids": ids}
    return {"model": "smol", "choices": [choice | {"finish_reason": None} | more]}


END = {
    "model": "smol",
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    "system_fingerprint": "vllm-0.32.0",
}


def answer_probe(served: FakeUpstream, mode: str) -> None:
    """Answer completions with logprobs as one of the modes of the server makes them."""
    logits = {"token_id:7042": 3.0, "token_id:260": 1.0}

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        temperature = body["temperature"] if mode != "raw" else 1.0
        scaled = {key: value / temperature for key, value in logits.items()}
        if mode == "processed" and body["top_p"] < 0.5:
            scaled.pop("token_id:260")
        # Most of the mass lies outside of the table.
        rest = 0.0 if len(scaled) == 1 else math.exp(2.0 / temperature)
        total = math.log(sum(map(math.exp, scaled.values())) + rest)
        top = {key: value - total for key, value in scaled.items()}
        if mode == "logits":
            top = logits
        async with streaming(request) as response:
            await response.write(
                make_events(completion(" Paris", [7042], [top], finish_reason="length"), END)
            )
        return response

    served.answer("POST", "/v1/completions", answer)


@asynccontextmanager
async def serving_vllm() -> AsyncIterator[FakeUpstream]:
    """Serve a model with raw logprobs."""
    async with serving() as served:
        served.answer_json("GET", "/version", {"version": "0.32.0"})
        served.answer_json("GET", "/v1/models", MODELS)
        answer_probe(served, "raw")
        yield served
