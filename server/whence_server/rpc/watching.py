"""Filter of WatchGenerations."""

import asyncio
from collections.abc import AsyncGenerator
from functools import lru_cache
from itertools import groupby
from typing import TypeVar

from google.protobuf.message import DecodeError

from whence_server.domain.entries import OUTSIDE_OFFSETS, Entry, EntryKind
from whence_server.domain.errors import (
    GenerationNotFoundError,
    RecordDamagedError,
)
from whence_server.journal.entry_messages import MESSAGES
from whence_server.journal.journal import Journal
from whence_server.journal.rows import ListFilter

T = TypeVar("T")

_LIFECYCLE = frozenset({EntryKind.STARTED, EntryKind.FINISHED})
# Number of generations whose match is cached: more than run at the same time.
_MAX_REMEMBERED = 10_000


async def stop_at_close(
    batches: AsyncGenerator[T, None], closing: asyncio.Event
) -> AsyncGenerator[T, None]:
    """Yield batches until they end or the server closes."""
    closed = asyncio.ensure_future(closing.wait())
    try:
        while True:
            coming = asyncio.ensure_future(anext(batches))
            try:
                await asyncio.wait({coming, closed}, return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    return
                try:
                    batch = coming.result()
                except StopAsyncIteration:
                    return
                yield batch
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
    finally:
        closed.cancel()
        await batches.aclose()


class WatchFilter:
    """Selection of the entries that one watcher requested."""

    def __init__(self, journal: Journal, wanted: ListFilter, lifecycle_only: bool) -> None:
        self._journal = journal
        self._wanted = wanted
        self._lifecycle_only = lifecycle_only
        self._matches: dict[str, bool] = {}

    async def select_runs(self, entries: list[Entry]) -> list[list[Entry]]:
        """Return the matching entries, grouped into runs of one generation."""
        wanted = [entry for entry in entries if await self._wants(entry)]
        return [list(run) for _, run in groupby(wanted, key=lambda entry: entry.generation_id)]

    async def _wants(self, entry: Entry) -> bool:
        if entry.kind in OUTSIDE_OFFSETS or not entry.payload:
            return False
        if self._lifecycle_only and entry.kind not in _LIFECYCLE:
            return False
        generation_id = entry.generation_id
        if not _is_readable(entry):
            self._matches[generation_id] = False
        if generation_id not in self._matches:
            if len(self._matches) >= _MAX_REMEMBERED:
                self._matches.clear()
            self._matches[generation_id] = await self._matches_filter(generation_id)
        return self._matches[generation_id]

    async def _matches_filter(self, generation_id: str) -> bool:
        try:
            index = (await self._journal.get(generation_id)).index
        except (GenerationNotFoundError, RecordDamagedError):
            return False
        return self._wanted.matches(index)


def _is_readable(entry: Entry) -> bool:
    """Return whether an entry can be parsed: a damaged one must not end the watch."""
    return _can_parse(entry.kind, entry.payload)


# Each watcher asks for the same entries, whose payloads are the same objects.
@lru_cache(maxsize=256)
def _can_parse(kind: EntryKind, payload: bytes) -> bool:
    try:
        MESSAGES[kind].FromString(payload)
    except (DecodeError, KeyError):
        return False
    return True
