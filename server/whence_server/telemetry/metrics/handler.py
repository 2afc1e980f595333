"""Measurement of committed entries: a handler of a follower without a cursor."""

import logging

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import GenerationNotFoundError, RecordDamagedError
from whence_server.telemetry.follower import Batch
from whence_server.telemetry.journal import GenerationReader
from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.generations import UNREADABLE, GenerationMetrics
from whence_server.telemetry.metrics.instruments import Instruments

logger = logging.getLogger(__name__)

_STARTED = frozenset({EntryKind.STARTED})


class MetricsHandler:
    """Handler that measures every entry once.

    Args:
        journal: read for the start of generations that an earlier process began.
        generations: measures entries.
        instruments: count entries that cannot be read.
        retry_s: seconds to wait after the journal could not be read.
    """

    def __init__(
        self,
        journal: GenerationReader,
        generations: GenerationMetrics,
        instruments: Instruments,
        retry_s: float,
    ) -> None:
        self._journal = journal
        self._generations = generations
        self._instruments = instruments
        self._retry_s = retry_s

    async def handle(self, batch: Batch) -> None:
        """Measure the batch's entries."""
        async for entries in batch:
            position = None
            try:
                for entry in entries:
                    await self._measure(entry)
                    position = entry.position
            finally:
                # Also after a failure, so that no entry is measured twice.
                self._generations.count_tokens()
                if position is not None:
                    batch.mark_handled(position)

    def note_progress(self) -> None:
        """Do nothing, because the handler has no state that a failure changes."""

    def note_failure(self, error: Exception) -> float:
        """Log the error that ended a batch; return the seconds until the next attempt."""
        logger.error("the metrics could not read the journal, and will retry", exc_info=error)
        return self._retry_s

    async def close(self) -> None:
        """Do nothing, because there is nothing to release."""

    async def _measure(self, entry: Entry) -> None:
        try:
            if entry.kind is EntryKind.FINISHED and not self._generations.has_start(
                entry.generation_id
            ):
                await self._look_up(entry.generation_id)
            self._generations.take(entry)
        except UNREADABLE:
            self._instruments.add(catalogue.UNREADABLE_ENTRIES, 1, {})
            logger.exception("journal entry %d cannot be read, and is in no metric", entry.position)

    async def _look_up(self, generation_id: str) -> None:
        """Read the start of a generation that ends here and began in an earlier process."""
        try:
            found = await self._journal.read(generation_id, 0, 1, _STARTED)
        except (GenerationNotFoundError, RecordDamagedError):  # deleted since, or damaged
            return
        if found and found[0].payload:
            self._generations.note_earlier_start(generation_id, found[0].payload)
