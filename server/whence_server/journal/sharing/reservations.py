"""Ids of generations that are about to start, held where other servers see them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

from whence_server.domain.errors import GenerationExistsError, JournalError
from whence_server.journal.log import Log
from whence_server.journal.readers import Readers
from whence_server.journal.sharing.store import SharedStore


class Reservations:
    """Ids that no other server that shares the database can take."""

    def __init__(self, log: Log, store: SharedStore, readers: Readers) -> None:
        self._log = log
        self._store = store
        self._readers = readers

    @asynccontextmanager
    async def hold(self, *generation_ids: str) -> AsyncIterator[None]:
        """Hold ids within the block, in which their generations are created.

        Raises:
            GenerationExistsError: an id was used before, or another request or server has it.
            JournalUnreachableError: the database is away.
        """
        held: list[str] = []
        try:
            for generation_id in generation_ids:
                await self._take(generation_id)
                held.append(generation_id)
            yield
        finally:
            self._log.held_ids.difference_update(held)
            for generation_id in held:
                if self._log.get_live(generation_id) is None:
                    with suppress(JournalError):
                        await self._readers.run(self._store.release_id, generation_id)

    async def _take(self, generation_id: str) -> None:
        log = self._log
        if generation_id in log.held_ids or log.get_live(generation_id) is not None:
            raise GenerationExistsError(generation_id)
        log.held_ids.add(generation_id)
        # The thread goes on when the call is cancelled.
        taking = asyncio.ensure_future(self._readers.run(self._store.take_id, generation_id))
        try:
            await asyncio.shield(taking)
        except BaseException:
            log.held_ids.discard(generation_id)
            taking.add_done_callback(partial(self._release_unused, generation_id))
            raise

    def _release_unused(self, generation_id: str, taking: asyncio.Future[None]) -> None:
        """Give back an id that was taken after its caller had gone."""
        if taking.cancelled() or taking.exception() is not None:
            return
        log = self._log
        if generation_id not in log.held_ids and log.get_live(generation_id) is None:
            self._store.release_later(generation_id)
