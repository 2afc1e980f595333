"""Generations to append to a journal, and functions that read it."""

import asyncio
from collections.abc import AsyncIterator

from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal.journal import Journal
from whence_server.journal.rows import FinishIndex, GenerationIndex

FINISH = FinishIndex(FinishReason.STOP, 3, "a text")


def index(generation_id: str, **changes) -> GenerationIndex:
    columns = {
        "generation_id": generation_id,
        "trace_id": "a" * 32,
        "model": "tiny",
        "start_time_ns": 1_000,
        "request_digest": "d" * 64,
        "labels": {"team": "blue"},
        "prompt_preview": "a prompt",
        "num_prompt_tokens": 2,
    }
    return GenerationIndex(**{**columns, **changes})


def create(journal: Journal, generation_id: str, payload: bytes = b"started", **changes) -> None:
    journal.create(index(generation_id, **changes), payload)


def append_steps(journal: Journal, generation_id: str, *payloads: bytes) -> None:
    for payload in payloads:
        journal.append(generation_id, EntryKind.STEP, payload)


def finish(journal: Journal, generation_id: str) -> None:
    journal.finish(generation_id, b"finished", FINISH)


def whole(journal: Journal, generation_id: str, num_steps: int = 3, **changes) -> None:
    """Append a generation from its start to its finish."""
    create(journal, generation_id, **changes)
    append_steps(journal, generation_id, *(b"step %d" % i for i in range(num_steps)))
    finish(journal, generation_id)


async def collect(batches: AsyncIterator[list[Entry]]) -> list[Entry]:
    return [entry async for batch in batches for entry in batch]


async def take(batches: AsyncIterator[list[Entry]], num_entries: int) -> list[Entry]:
    """Return the first entries of a follower that may never end."""
    entries: list[Entry] = []
    while len(entries) < num_entries:
        entries.extend(await anext(batches))
    return entries


async def settle() -> None:
    """Let the event loop run everything that does not wait for a thread."""
    for _ in range(5):
        await asyncio.sleep(0)
