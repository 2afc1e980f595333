"""Filter and positions of WatchGenerations."""

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator
from itertools import groupby
from typing import TypeVar

from whence_server.domain.entries import OUTSIDE_OFFSETS, Entry, EntryKind
from whence_server.domain.errors import (
    FieldViolation,
    GenerationNotFoundError,
    InvalidRequestError,
    RecordDamagedError,
)
from whence_server.journal.journal import Journal
from whence_server.journal.rows import ListFilter
from whence_server.rpc.splice import require_readable

T = TypeVar("T")

_PREFIX = b"p2:"
# Tokens of earlier servers, "p1:", do not name the journal.
_TOKEN = re.compile(rb"(?:p1:|p2:([0-9a-f]{32}):)([0-9]{1,18})")
_LIFECYCLE = frozenset({EntryKind.STARTED, EntryKind.FINISHED})
# Number of generations whose match is cached: more than run at the same time.
_MAX_REMEMBERED = 10_000


def make_position_token(journal_id: bytes, position: int) -> str:
    """Return a journal's position as an opaque token, which no other journal takes."""
    raw = b"%b%b:%d" % (_PREFIX, journal_id.hex().encode(), position)
    return base64.urlsafe_b64encode(raw).decode()


def read_position(token: str, journal: Journal) -> int:
    """Parse a token of `make_position_token`, or of a server that did not name its journal.

    Raises:
        InvalidRequestError: the token is malformed, or from another journal.
    """
    parsed = _parse_position(token)
    if parsed is None:
        fault = "is not a position that WatchGenerations returned"
    elif parsed[0] not in ("", journal.id.hex()) or parsed[1] > journal.position:
        # A watch from there would miss events in silence.
        fault = (
            f"is position {parsed[1]} of another journal than this server's: leave it empty, or "
            "ask the server that returned it"
        )
    else:
        return parsed[1]
    raise InvalidRequestError(FieldViolation("after_position", fault))


def _parse_position(token: str) -> tuple[str, int] | None:
    """Return the id of the journal, "" if the token has none, and the position."""
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    found = _TOKEN.fullmatch(raw)
    return ((found[1] or b"").decode(), int(found[2])) if found else None


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
        wanted = self._wanted
        return (
            (wanted.start_after_ns is None or index.start_time_ns > wanted.start_after_ns)
            and (wanted.start_before_ns is None or index.start_time_ns < wanted.start_before_ns)
            and wanted.model in ("", index.model)
            and wanted.trace_id in ("", index.trace_id)
            and wanted.owner in {None, index.owner}
            and wanted.labels.items() <= index.labels.items()
        )


def _is_readable(entry: Entry) -> bool:
    """Return whether an entry can be parsed: a damaged one must not end the watch."""
    try:
        require_readable([entry])
    except RecordDamagedError:
        return False
    return True
