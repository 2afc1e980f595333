"""Deletions of generations that lie in the log of another server.

Only the holder of a log may append to it, and a deletion is an entry of its generation's log. A
server that is asked to delete a generation of another log leaves an errand in the database; the
log's holder does it and answers. A log without a holder is taken over for it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from whence_server.domain.errors import (
    DeletionPendingError,
    GenerationHeldError,
    GenerationNotFoundError,
    GenerationRunningError,
    JournalError,
    JournalUnwritableError,
    WhenceError,
)
from whence_server.journal.readers import Readers
from whence_server.journal.sharing.elsewhere import Elsewhere
from whence_server.journal.sharing.store import Change, Errand, SharedStore

_log = logging.getLogger(__name__)

Delete = Callable[[str, str], Awaitable[None]]
_DONE = "done"
_PAUSE_S = 1.0
_LONGEST_ANSWER_S = 10.0


class Errands:
    """Errands that a journal does for other servers, and those that it gives to them.

    Args:
        store: the database.
        readers: threads for look-ups.
        elsewhere: changes of other logs.
        delete: deletes a generation of this log, for a caller.
    """

    def __init__(
        self, store: SharedStore, readers: Readers, elsewhere: Elsewhere, delete: Delete
    ) -> None:
        self._store = store
        self._readers = readers
        self._elsewhere = elsewhere
        self._delete = delete
        self._busy = asyncio.Lock()

    async def run(self) -> None:
        """Do the errands of this log until the task is cancelled."""
        while True:
            try:
                await self.do_all()
            except JournalError as error:
                _log.debug("errands wait: %s", error)
            await self._elsewhere.wait(Change.ERRANDS, _PAUSE_S)

    async def do_all(self) -> None:
        """Do the present errands of this log.

        Raises:
            JournalError: the database is away, or nothing can be written.
        """
        async with self._busy:
            for errand in await self._readers.run_heavy(self._store.list_errands):
                await self._do(errand)

    async def _do(self, errand: Errand) -> None:
        try:
            await self._delete(errand.generation_id, errand.caller_id)
            outcome = _DONE
        except JournalError:
            raise  # This server tries again; if it lost its log, the next holder answers.
        except GenerationHeldError as error:
            outcome = f"{error.reason} {error.hold}"
        except WhenceError as error:
            outcome = error.reason
        await self._readers.run_heavy(self._store.end_errand, errand.number, outcome)

    async def give(self, writer: int, generation_id: str, caller_id: str) -> None:
        """Have the holder of another log delete a generation, and wait until it is done.

        Raises:
            GenerationNotFoundError, GenerationRunningError, GenerationHeldError,
                DeletionPendingError: as the holder says.
            JournalUnwritableError: no server has answered in time; it may still be done.
        """
        store = self._store
        number = await self._readers.run_heavy(store.ask_deletion, writer, generation_id, caller_id)
        outcome = None
        try:
            async with asyncio.timeout(_LONGEST_ANSWER_S + 2 * store.lease_s):
                while outcome is None:
                    # The deletion is an entry of its own.
                    await self._elsewhere.wait(Change.ENTRIES, _PAUSE_S / 4)
                    outcome = await self._readers.run_heavy(store.read_outcome, number)
        except TimeoutError:
            raise JournalUnwritableError(
                "the server that holds the generation's log does not answer"
            ) from None
        finally:
            await self._readers.run_heavy(store.forget_errand, number)
        _raise_outcome(outcome, generation_id)


def _raise_outcome(outcome: str, generation_id: str) -> None:
    if outcome == GenerationRunningError.reason:
        raise GenerationRunningError(generation_id)
    if outcome == DeletionPendingError.reason:
        raise DeletionPendingError(generation_id)
    if outcome == GenerationNotFoundError.reason:
        raise GenerationNotFoundError(generation_id, deleted=True)
    reason, _, detail = outcome.partition(" ")
    if reason == GenerationHeldError.reason:
        raise GenerationHeldError(generation_id, detail)
    if outcome != _DONE:
        raise JournalUnwritableError(f"the generation's log answered {outcome}")
