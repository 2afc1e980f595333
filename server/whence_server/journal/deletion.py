"""Deletion of generations: their content is destroyed on disk, their ids stay taken."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from whence_server.domain.errors import (
    GenerationHeldError,
    GenerationNotFoundError,
    JournalError,
    RecordDamagedError,
)
from whence_server.domain.retention import DeletionRequest, LabelPattern
from whence_server.journal.chain import Origin
from whence_server.journal.derive import (
    EntriesDigest,
    derive_started_index,
    encode_deletion,
    encode_removal,
)
from whence_server.journal.log import Log
from whence_server.journal.readers import Readers
from whence_server.journal.rows import GenerationRow
from whence_server.journal.sealing.sealed_store import SealedStore
from whence_server.journal.store import Store

_log = logging.getLogger(__name__)

_CLEAR_AGAIN_S = 1.0
_TRUNCATE_ATTEMPTS = 5
_ANY_SIZE = 2**62


class Deletion:
    """Deletion of generations from one log.

    Attributes:
        holds: patterns of generations that nothing deletes.
    """

    def __init__(
        self,
        log: Log,
        store: Store,
        readers: Readers,
        find_key_id: Callable[[str], bytes],
        holds: tuple[LabelPattern, ...] = (),
    ) -> None:
        self.holds = holds
        self._log = log
        self._store = store
        self._readers = readers
        self._find_key_id = find_key_id
        self._clearing: asyncio.Task[None] | None = None
        self._is_log_cleared = True
        self._is_closed = False

    async def delete(self, row: GenerationRow, caller_id: str = "") -> bool:
        """Append DELETED, destroy the content, and remove it from the write-ahead log.

        Args:
            row: row of the generation.
            caller_id: id of the caller that asked for it, for the record.

        Returns:
            False if a reader outside this server keeps the content in the write-ahead log; clearing
            is then repeated until it succeeds or the journal is closed.

        Raises:
            GenerationHeldError: a label of the generation is under a hold.
            GenerationNotFoundError: its deletion is in progress.
            JournalError: nothing more can be written.
        """
        if self.holds:
            await self._check_holds(row)
        await self._append(DeletionRequest(row.generation_id, caller_id=caller_id))
        return await self._finish()

    async def delete_all(self, requests: Sequence[DeletionRequest]) -> list[DeletionRequest]:
        """Delete several generations as `delete` does, and return those that were deleted.

        The caller has checked the holds. A generation that was deleted meanwhile, or that is
        damaged, is left out.

        Raises:
            JournalError: nothing more can be written.
        """
        deleted = []
        try:
            for request in requests:
                try:
                    await self._append(request)
                except GenerationNotFoundError:
                    continue
                except RecordDamagedError as error:
                    _log.error("retention leaves a generation as it is: %s", error)
                    continue
                deleted.append(request)
        except BaseException:
            # The DELETED entries so far get committed all the same.
            if deleted:
                self._clear_later()
            raise
        await self._finish()
        return deleted

    async def remove(self, origin: Origin) -> None:
        """Remove the oldest entries, whose content is gone, and put the removal on record.

        Args:
            origin: the last entry to remove.

        Raises:
            JournalError: nothing more can be written.
        """
        payload = encode_removal(time.time_ns(), origin.position, origin.hash)
        self._log.append_removal(origin, payload)
        await self._finish()

    async def _check_holds(self, row: GenerationRow) -> None:
        """Raise GenerationHeldError if a hold matches the row's labels, or those of the entries.

        Labels are compared as they are stored: the holds have both spellings, and a generation
        whose key is missing can be deleted too.
        """
        store = self._store.stored if isinstance(self._store, SealedStore) else self._store
        stored = await self._readers.run(store.find_generation, row.generation_id)
        entries = await self._readers.run(
            store.read, row.generation_id, 0, limit=1, max_bytes=_ANY_SIZE
        )
        known = [row.index.labels, stored.index.labels if stored else {}]
        with suppress(ValueError):
            known += [derive_started_index(entry.payload).labels for entry in entries]
        for hold in self.holds:
            if any(map(hold.matches, known)):
                raise GenerationHeldError(row.generation_id, str(hold))

    async def _append(self, request: DeletionRequest) -> None:
        """Append DELETED, whose transaction destroys the content."""
        self._log.begin_deletion(request.generation_id)
        try:
            payload = await self._make_payload(request)
            self._log.append_deletion(request.generation_id, payload)
        except BaseException:
            self._log.cancel_deletion(request.generation_id)
            raise

    async def _make_payload(self, request: DeletionRequest) -> bytes:
        """Return the payload of the DELETED entry, over all entries of the generation so far."""
        await self._log.flush()
        position, last_position, digest = await self._readers.run_heavy(
            self._digest, request.generation_id
        )
        key_id = await self._readers.run(self._find_key_id, request.generation_id)
        calls = self._log.list_calls_since_deletion(request.generation_id)
        digest.add(call for call in calls if call.position > last_position)
        return encode_deletion(
            request.generation_id,
            position,
            time.time_ns(),
            digest,
            request,
            destroyed_key_id=key_id,
        )

    def _digest(self, generation_id: str) -> tuple[int, int, EntriesDigest]:
        """Return the first and the last position of a generation on disk, and its digest."""
        position, entries = self._store.read_entry_digests(generation_id)
        return position, entries[-1].position, EntriesDigest(entries)

    async def _finish(self) -> bool:
        """Commit the deletions and clear the write-ahead log; return False if a reader holds it."""
        is_cleared = False
        try:
            await self._log.flush()
            is_cleared = await self._clear()
        finally:
            # Also if the caller has hung up or the disk is full: DELETED gets committed all the
            # same, and the content must not stay in the log until the next deletion.
            if not is_cleared:
                self._clear_later()
        return is_cleared

    async def _clear(self) -> bool:
        """Remove deleted content from the write-ahead log; return False if a reader holds it."""
        for _ in range(_TRUNCATE_ATTEMPTS):
            if await self._log.writer.run(self._store.truncate_log):
                return True
        return False

    def _clear_later(self) -> None:
        self._is_log_cleared = False
        if self._is_closed:
            return  # The end of the store, or the next start, clears the log.
        if self._clearing is None or self._clearing.done():
            self._clearing = asyncio.create_task(self._keep_clearing(), name="journal-clearing")

    async def _keep_clearing(self) -> None:
        while not self._is_log_cleared:
            await asyncio.sleep(_CLEAR_AGAIN_S)
            # A deletion that comes meanwhile may be committed after the log is cleared.
            self._is_log_cleared = True
            is_cleared = False
            with suppress(JournalError):
                await self._log.flush()
                is_cleared = await self._log.writer.run(self._store.truncate_log)
            self._is_log_cleared &= is_cleared

    async def wait_cleared(self) -> None:
        """Wait until the write-ahead log holds no deleted content."""
        if self._clearing is not None:
            await self._clearing

    async def close(self) -> None:
        """Stop clearing."""
        self._is_closed = True
        if self._clearing is not None:
            self._clearing.cancel()
            await asyncio.gather(self._clearing, return_exceptions=True)
