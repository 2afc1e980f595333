"""Requests to an upstream, as tests of its kinds ask them."""

from contextlib import aclosing
from typing import Any

from whence_server.domain.chat import ChatInput, ChatMessage
from whence_server.domain.decoding import Decoding, Strategy
from whence_server.engines.upstream.client import UpstreamClient
from whence_server.engines.upstream.exchange import (
    UpstreamChunk,
    UpstreamEnd,
    UpstreamEvent,
    UpstreamPrompt,
    UpstreamRequest,
)

CHAT = ChatInput((ChatMessage("user", "Name the capital of France."),))


def ask(
    prompt: str | tuple[int, ...] | ChatInput = "The capital of France is",
    num_candidates: int | None = 2,
    passed_on: dict[str, Any] | None = None,
    trace_headers: dict[str, str] | None = None,
    **decoding: Any,
) -> UpstreamRequest:
    """Return a request; sampling, unless `strategy` says otherwise."""
    settings = {"strategy": Strategy.SAMPLE, "max_new_tokens": 8, "seed": 7} | decoding
    if settings["strategy"] is not Strategy.SAMPLE:
        settings.pop("seed", None)
    return UpstreamRequest(
        "11111111-2222-3333-4444-555555555555",
        prompt,
        Decoding(**settings),
        num_candidates,
        trace_headers or {},
        passed_on or {},
    )


async def collect(client: UpstreamClient, request: UpstreamRequest) -> list[UpstreamEvent]:
    """Return all parts of an answer."""
    async with aclosing(client.generate(request, client.pin())) as events:
        return [event async for event in events]


def get_chunks(events: list[UpstreamEvent], index: int = 0) -> list[UpstreamChunk]:
    """Return a sequence's chunks."""
    return [
        event
        for event in events
        if isinstance(event, UpstreamChunk) and event.sequence_index == index
    ]


def get_prompt(events: list[UpstreamEvent]) -> UpstreamPrompt:
    """Return the prompt, which comes before everything else, and once."""
    (prompt,) = [event for event in events if isinstance(event, UpstreamPrompt)]
    assert events[0] is prompt
    return prompt


def get_end(events: list[UpstreamEvent]) -> UpstreamEnd:
    """Return the end, which comes after everything else, and once."""
    (end,) = [event for event in events if isinstance(event, UpstreamEnd)]
    assert events[-1] is end
    return end
