"""The durable exporter: a cursor on the journal that moves once the collector has answered."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

from opentelemetry.sdk.resources import Resource

from whence_server.domain.entries import Entry
from whence_server.domain.telemetry import ContentCapture
from whence_server.telemetry.export.backoff import Backoff
from whence_server.telemetry.export.courier import ExportStats, Sleep
from whence_server.telemetry.export.delivery import (
    DEFAULT_LONG_PATIENCE,
    DEFAULT_PATIENCE,
    Delivery,
    Describe,
    describe_span,
)
from whence_server.telemetry.export.outcomes import SpanSink
from whence_server.telemetry.export.resource import Envelope
from whence_server.telemetry.journal import Behind, Lag, SpanJournal
from whence_server.telemetry.spans.encoder import (
    DEFAULT_STEP_SPANS,
    SpanEncoder,
    UnreadableEntryError,
)

logger = logging.getLogger(__name__)

_NUM_TRIES = 16
"""Entries that are looked at for a span: many have none."""

Encode: TypeAlias = Callable[[Entry], Awaitable[list[bytes]]]
"""An entry's spans, each as a ScopeSpans message that holds it alone."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How spans are batched and sent.

    Attributes:
        cursor_name: one destination, one cursor.
        step_spans: at most so many `decode_step` spans for one generation; None is no bound,
            0 is none.
        step_candidates: whether these carry their steps' candidates.
        content: where prompts, outputs and tokens' texts go.
        max_batch_spans: spans of one request.
        max_batch_bytes: and their size; collectors take 4 MiB by default.
        linger_s: how long new entries are left to gather into a request.
        max_slice_s: the longest that the event loop is kept from other work.
        initial_backoff_s: the first delay after a failure.
        max_backoff_s: the longest.
        patience: attempts at a batch that the destination fails over (gRPC's INTERNAL and
            UNKNOWN, HTTP's 5xx), before its spans are suspected: some five minutes.
        long_patience: attempts at a batch that comes to nothing otherwise (no connection, no
            answer in time, no permission), likewise: about a quarter of an hour.
    """

    cursor_name: str = "otlp-spans"
    step_spans: int | None = DEFAULT_STEP_SPANS
    step_candidates: bool = True
    content: ContentCapture = ContentCapture.NO_CONTENT
    max_batch_spans: int = 512
    max_batch_bytes: int = 1 << 20
    linger_s: float = 0.2
    max_slice_s: float = 0.000_25
    initial_backoff_s: float = 0.1
    max_backoff_s: float = 30.0
    patience: int = DEFAULT_PATIENCE
    long_patience: int = DEFAULT_LONG_PATIENCE


@dataclass(frozen=True, slots=True)
class ExportHealth:
    """How the export stands: for metrics, and for whoever asks after the server's health."""

    num_entries_behind: int
    """Committed entries that the destination has not answered for yet."""
    oldest_s: float
    """For how long the oldest of them has been known here: at most its age. 0: none waits."""
    num_exported: int
    """Spans that the destination has; this and the following count from the start."""
    num_requests: int
    num_retries: int
    num_rejected: int
    """Spans that the destination said it did not take."""
    num_set_aside: int
    """Spans that the destination refuses while it takes others, given up one by one."""
    num_unreadable: int
    """Entries whose bytes made no span."""
    retrying: bool
    """The last attempt failed and will be repeated."""
    last_error: str
    """The newest, over or not; "" where there was none."""
    refusing: bool = False
    """The destination answers and takes nothing of what waits: all of it is held."""
    newest_set_aside: tuple[str, ...] = ()
    """Names and ids of the spans that were given up last."""


class SpanExporter:
    """Sends the spans of everything that the journal commits, each at least once.

    They go in order, but for those that are sent early to find out whether a destination that
    refuses one takes others (`telemetry.trial`).

    Nothing is held in memory but the batch under way: with the collector away, or after a
    restart, it goes on from the cursor, and what arrives twice is the same to the byte.

    Args:
        journal: what to read, and where the cursor lives.
        sink: where spans go; closed with the exporter.
        resource: who sends them.
        version: whence's own, for the instrumentation scope.
        options: see there.
        encode: what an entry is sent as, instead of its spans; each a ScopeLogs message that
            holds one log record alone, which has the same form on the wire.
        describe: names one of these, or a span, for the log.
        hide_words: keep what others say in their own words, which may repeat content, out of
            the log: where content is sent.
        sleep: takes seconds.
        clock: gives seconds, never going back.
    """

    def __init__(
        self,
        journal: SpanJournal,
        sink: SpanSink,
        resource: Resource,
        version: str,
        *,
        options: ExportOptions = ExportOptions(),
        encode: Encode | None = None,
        describe: Describe = describe_span,
        hide_words: bool = False,
        sleep: Sleep = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = ExportStats()
        self._journal = journal
        self._sink = sink
        self._options = options
        self._hide_words = hide_words
        self._sleep = sleep
        self._encode = (
            encode
            or SpanEncoder(
                journal,
                options.step_spans,
                step_candidates=options.step_candidates,
                content=options.content,
            ).spans_of
        )
        self._backoff = Backoff(options.initial_backoff_s, options.max_backoff_s)
        envelope = Envelope(resource, version)
        self._delivery = Delivery(
            sink,
            envelope,
            self.stats,
            self._backoff,
            sleep,
            patience=options.patience,
            long_patience=options.long_patience,
            describe=describe,
            hide_words=hide_words,
        )
        self._lag = Lag(clock)
        self._position: int | None = None
        self._batch_end = 0
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts exporting in the running event loop."""
        self._task = asyncio.create_task(self._run(), name="span-exporter")

    @property
    def lag_entries(self) -> int:
        """Committed entries that the destination has not answered for yet."""
        return self._journal.committed_position - (self._position or 0)

    def behind(self) -> Behind:
        """Says how far the destination's answers are behind the journal."""
        self._observe()
        return Behind(self.lag_entries, self._lag.oldest_s())

    def health(self) -> ExportHealth:
        """Says how the export stands."""
        stats, behind = self.stats, self.behind()
        return ExportHealth(
            num_entries_behind=behind.num_entries,
            oldest_s=behind.oldest_s,
            num_exported=stats.num_exported,
            num_requests=stats.num_requests,
            num_retries=stats.num_retries,
            num_rejected=stats.num_rejected,
            num_set_aside=stats.num_set_aside,
            num_unreadable=stats.num_unreadable,
            retrying=stats.retrying,
            last_error=stats.last_error,
            refusing=stats.refusing,
            newest_set_aside=tuple(stats.newest_set_aside),
        )

    async def flush(self, timeout_s: float) -> bool:
        """Waits until all that is committed by now was answered for; False if time ran out."""
        target = self._journal.committed_position
        try:
            async with asyncio.timeout(timeout_s):
                while self._position is None or self._position < target:
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stops at once: what was not answered for is sent again after the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._sink.close()

    async def _run(self) -> None:
        while True:
            try:
                if self._position is None:
                    self._moved_to(await self._journal.cursor(self._options.cursor_name))
                await self._turn(self._position or 0)
            except Exception as error:  # noqa: BLE001 - ours goes on
                kind = type(error).__name__
                self.stats.last_error = kind if self._hide_words else f"{kind}: {error}"
                self.stats.retrying = True
                self._log_exception("the span exporter will try again", error)
                await self._sleep(self._backoff.next_s())

    async def _turn(self, position: int) -> None:
        """Sends what is committed beyond the position, or waits for something to be."""
        self._observe()
        entries = await self._journal.read_committed(position, self._options.max_batch_spans)
        if not entries:
            await self._journal.wait_committed(position)
            self._observe()
            await self._sleep(self._options.linger_s)
            return
        batch: list[bytes] = []
        num_bytes = 0
        slice_end = time.perf_counter() + self._options.max_slice_s
        self._batch_end = position
        for entry in entries:
            spans = await self._spans_of(entry)
            more_bytes = sum(map(len, spans))
            if batch and not self._fits(len(batch) + len(spans), num_bytes + more_bytes):
                await self._delivery.deliver(batch, self._span_behind)
                self._advance(entry.position - 1)
                batch, num_bytes = [], 0
            self._batch_end = entry.position
            batch += spans
            num_bytes += more_bytes
            if time.perf_counter() > slice_end:
                await asyncio.sleep(0)
                slice_end = time.perf_counter() + self._options.max_slice_s
        if batch:
            await self._delivery.deliver(batch, self._span_behind)
        self._advance(entries[-1].position)

    async def _span_behind(self) -> bytes | None:
        """Gives a span of what waits behind the batch, by chance; None where none was found."""
        first = self._batch_end
        for _ in range(_NUM_TRIES):
            last = self._journal.committed_position
            if last <= first:
                break
            place = random.randrange(first, last)  # noqa: S311 - no secret
            for entry in await self._journal.read_committed(place, 1):
                with suppress(UnreadableEntryError):
                    if spans := await self._encode(entry):
                        return random.choice(spans)  # noqa: S311 - no secret
        return None

    async def _spans_of(self, entry: Entry) -> list[bytes]:
        try:
            return await self._encode(entry)
        except UnreadableEntryError as error:
            self.stats.num_unreadable += 1
            self._log_exception(f"entry {entry.position} is left out of the spans", error)
            return []

    def _log_exception(self, what: str, error: Exception) -> None:
        if self._hide_words:
            logger.error("%s: %s", what, type(error).__name__)
        else:
            logger.error(what, exc_info=error)

    def _fits(self, num_spans: int, num_bytes: int) -> bool:
        """Says whether so much goes into one request; an entry's spans are never parted."""
        options = self._options
        return num_spans <= options.max_batch_spans and num_bytes <= options.max_batch_bytes

    def _advance(self, position: int) -> None:
        self._journal.advance(self._options.cursor_name, position)
        self._moved_to(position)

    def _observe(self) -> None:
        self._lag.observe(self._journal.committed_position, self._position or 0)

    def _moved_to(self, position: int) -> None:
        self._position = position
        self.stats.retrying = False
        self._observe()
        self._moved.set()
