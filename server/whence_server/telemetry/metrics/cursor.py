"""Follows the journal, and has every committed entry measured once."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import GenerationNotFoundError, RecordDamagedError
from whence_server.telemetry.journal import Behind, FollowedJournal, Lag
from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.generations import UNREADABLE, GenerationMetrics
from whence_server.telemetry.metrics.instruments import Instruments

logger = logging.getLogger(__name__)

CONSUMER_NAME = "metrics"
_STARTED = frozenset({EntryKind.STARTED})


@dataclass(frozen=True, slots=True)
class CursorOptions:
    """How the journal is followed.

    Attributes:
        batch_entries: read at a time.
        linger_s: how long new entries are left to gather.
        max_slice_s: the longest that the event loop is kept from other work.
        retry_s: how long to wait after the journal could not be read.
    """

    batch_entries: int = 1_024
    linger_s: float = 0.25
    max_slice_s: float = 0.000_25
    retry_s: float = 5.0


class MetricsCursor:
    """Measures what is committed from now on: counters begin at 0 with the process.

    The cursor is not kept: what an earlier process wrote was measured by that one.

    Args:
        journal: what to follow.
        generations: measures entries.
        instruments: where entries that cannot be understood are counted.
        options: see there.
        sleep: takes seconds.
        clock: gives seconds, never going back.
    """

    def __init__(
        self,
        journal: FollowedJournal,
        generations: GenerationMetrics,
        instruments: Instruments,
        *,
        options: CursorOptions = CursorOptions(),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal = journal
        self._generations = generations
        self._instruments = instruments
        self._options = options
        self._sleep = sleep
        self._position = journal.committed_position
        self._lag = Lag(clock)
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts following in the running event loop."""
        self._task = asyncio.create_task(self._run(), name="metrics-cursor")

    def behind(self) -> Behind:
        """Says how far measuring is behind the journal."""
        self._observe()
        return Behind(self._journal.committed_position - self._position, self._lag.oldest_s())

    async def flush(self, timeout_s: float) -> bool:
        """Waits until all that is committed by now is measured; False if time ran out."""
        target = self._journal.committed_position
        try:
            async with asyncio.timeout(timeout_s):
                while self._position < target:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stops at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                await self._turn()
            except Exception:  # the journal's trouble must not end the metrics
                logger.exception("the metrics will try the journal again")
                await self._sleep(self._options.retry_s)

    async def _turn(self) -> None:
        """Measures what is committed beyond the position, or waits for something to be."""
        position = self._position
        self._observe()
        entries = await self._journal.read_committed(position, self._options.batch_entries)
        if not entries:
            await self._journal.wait_committed(position)
            self._observe()
            await self._sleep(self._options.linger_s)
            return
        slice_end = time.perf_counter() + self._options.max_slice_s
        for entry in entries:
            await self._measure(entry)
            self._position = entry.position
            if time.perf_counter() > slice_end:
                self._generations.count_tokens()
                await asyncio.sleep(0)
                slice_end = time.perf_counter() + self._options.max_slice_s
        self._generations.count_tokens()
        self._moved.set()

    def _observe(self) -> None:
        self._lag.observe(self._journal.committed_position, self._position)

    async def _measure(self, entry: Entry) -> None:
        try:
            if entry.kind is EntryKind.FINISHED and not self._generations.knows(
                entry.generation_id
            ):
                await self._look_up(entry.generation_id)
            self._generations.take(entry)
        except UNREADABLE:
            self._instruments.add(catalogue.UNREADABLE_ENTRIES, 1, {})
            logger.exception("entry %d of the journal is in no metric", entry.position)

    async def _look_up(self, generation_id: str) -> None:
        """Finds out how a generation started that ends here and began in an earlier process."""
        try:
            found = await self._journal.read(generation_id, 0, 1, _STARTED)
        except (GenerationNotFoundError, RecordDamagedError):  # deleted since, or damaged
            return
        if found and found[0].payload:
            self._generations.begun_before(generation_id, found[0].payload)
