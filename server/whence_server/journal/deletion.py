"""Deletion of a generation: its content is destroyed on disk, its id stays taken."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from whence_server.domain.errors import JournalError
from whence_server.journal.derive import encode_deletion
from whence_server.journal.log import Log
from whence_server.journal.readers import Readers
from whence_server.journal.store import Store

_CLEAR_AGAIN_S = 1.0
_TRUNCATE_ATTEMPTS = 5


class Deletion:
    """Deletion of generations from one log."""

    def __init__(
        self, log: Log, store: Store, readers: Readers, find_key_id: Callable[[str], bytes]
    ) -> None:
        self._log = log
        self._store = store
        self._readers = readers
        self._find_key_id = find_key_id
        self._clearing: asyncio.Task[None] | None = None

    async def delete(self, generation_id: str, caller_id: str = "") -> bool:
        """Append DELETED, destroy the content, and remove it from the write-ahead log.

        Args:
            generation_id: id of the generation.
            caller_id: id of the caller that asked for it, for the record.

        Returns:
            False if a reader outside this server keeps the content in the write-ahead log; clearing
            is then repeated until it succeeds or the journal is closed.

        Raises:
            GenerationNotFoundError: its deletion is in progress.
            JournalError: nothing more can be written.
        """
        self._log.begin_deletion(generation_id)
        try:
            payload = await self._make_payload(generation_id, caller_id)
            self._log.append_deletion(generation_id, payload)
        except BaseException:
            self._log.cancel_deletion(generation_id)
            raise
        await self._log.flush()
        if await self._clear():
            return True
        self._clear_later()
        return False

    async def _make_payload(self, generation_id: str, caller_id: str) -> bytes:
        """Return the payload of the DELETED entry, over all entries of the generation so far."""
        await self._log.flush()
        position, entries = await self._readers.run_heavy(
            self._store.read_entry_digests, generation_id
        )
        known = {entry.position for entry in entries}
        key_id = await self._readers.run(self._find_key_id, generation_id)
        calls = self._log.list_calls_since_deletion(generation_id)
        late = [entry for entry in calls if entry.position not in known]
        return encode_deletion(
            generation_id,
            position,
            time.time_ns(),
            [*entries, *late],
            caller_id,
            destroyed_key_id=key_id,
        )

    async def _clear(self) -> bool:
        """Remove deleted content from the write-ahead log; return False if a reader holds it."""
        for _ in range(_TRUNCATE_ATTEMPTS):
            if await self._log.writer.run(self._store.truncate_log):
                return True
        return False

    def _clear_later(self) -> None:
        if self._clearing is None or self._clearing.done():
            self._clearing = asyncio.create_task(self._keep_clearing(), name="journal-clearing")

    async def _keep_clearing(self) -> None:
        cleared = False
        while not cleared:
            await asyncio.sleep(_CLEAR_AGAIN_S)
            with suppress(JournalError):
                cleared = await self._log.writer.run(self._store.truncate_log)

    async def wait_cleared(self) -> None:
        """Wait until the write-ahead log holds no deleted content."""
        if self._clearing is not None:
            await self._clearing

    async def close(self) -> None:
        """Stop clearing."""
        if self._clearing is not None:
            self._clearing.cancel()
            await asyncio.gather(self._clearing, return_exceptions=True)
