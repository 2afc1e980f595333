"""Durable export of committed entries: a handler of a follower with a cursor."""

import asyncio
import logging
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from opentelemetry.sdk.resources import Resource

from whence_server.domain.entries import Entry
from whence_server.telemetry.export.backoff import INITIAL_S, MAXIMUM_S, Backoff
from whence_server.telemetry.export.courier import Sleep
from whence_server.telemetry.export.delivery import (
    DEFAULT_LONG_PATIENCE,
    DEFAULT_PATIENCE,
    Delivery,
)
from whence_server.telemetry.export.outcomes import SpanSink
from whence_server.telemetry.export.resource import Envelope
from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.follower import Batch
from whence_server.telemetry.journal import CommittedLog, UnreadableEntryError

logger = logging.getLogger(__name__)

_NUM_TRIES = 16
"""Entries that are read to find a span, because many have none."""


class EntryEncoder(Protocol):
    """Encoder of entries as spans or log events."""

    def expect(self, entries: Sequence[Entry]) -> None:
        """Note the entries that will be encoded next, in order; the encoder may read them ahead."""
        ...

    async def encode(self, entry: Entry) -> list[bytes]:
        """Encode an entry's spans, each as a ScopeSpans message that holds it alone.

        Events come as ScopeLogs messages, which have the same form on the wire.

        Raises:
            UnreadableEntryError: the payload is not a message of the entry's kind.
        """
        ...

    def describe(self, piece: bytes) -> str:
        """Describe an encoded span or event for the log."""
        ...


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Size of requests, and patience with the destination.

    Attributes:
        max_batch_spans: most spans of one request.
        max_batch_bytes: most bytes of a request's spans; collectors accept 4 MiB by default.
        initial_backoff_s: first delay after a failure in seconds.
        max_backoff_s: longest delay in seconds.
        patience: attempts on which the destination fails (gRPC's INTERNAL and UNKNOWN, HTTP's
            5xx) before a batch is split; some five minutes.
        long_patience: attempts with other errors (no connection, no answer in time, no
            permission) before a batch is split; about a quarter of an hour.
    """

    max_batch_spans: int = 512
    max_batch_bytes: int = 1 << 20
    initial_backoff_s: float = INITIAL_S
    max_backoff_s: float = MAXIMUM_S
    patience: int = DEFAULT_PATIENCE
    long_patience: int = DEFAULT_LONG_PATIENCE


class JournalExporter:
    """Handler that sends the spans of every batch of entries, each at least once.

    Spans are sent in order, except those that are sent early to test whether a destination that
    refuses one span accepts others (`telemetry.export.trial`).

    Only the batch under way is held in memory. While the collector is down, and after a restart,
    the follower resumes at the cursor; a span that is sent twice is byte-identical.

    Args:
        journal: read for spans after the batch.
        sink: the destination; closed with the exporter.
        encoder: encodes entries as spans or events.
        resource: resource of the server.
        version: version of whence, for the instrumentation scope.
        options: size of requests, and patience with the destination.
        hide_words: log and show only the kind of each error, because its text may repeat content
            that was sent.
        sleep: waits for a number of seconds.

    Attributes:
        stats: outcomes of the export so far.
    """

    def __init__(
        self,
        journal: CommittedLog,
        sink: SpanSink,
        encoder: EntryEncoder,
        resource: Resource,
        version: str,
        *,
        options: ExportOptions = ExportOptions(),
        hide_words: bool = False,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.stats = ExportStats()
        self._journal = journal
        self._sink = sink
        self._encoder = encoder
        self._options = options
        self._hide_words = hide_words
        self._backoff = Backoff(options.initial_backoff_s, options.max_backoff_s)
        self._delivery = Delivery(
            sink,
            Envelope(resource, version),
            self.stats,
            self._backoff,
            sleep,
            describe=encoder.describe,
            patience=options.patience,
            long_patience=options.long_patience,
            hide_words=hide_words,
        )
        self._batch_end = 0

    async def handle(self, batch: Batch) -> None:
        """Send the batch's spans in requests of bounded size, and wait for the answers."""
        self._encoder.expect(batch.entries)
        request: list[bytes] = []
        num_bytes = 0
        max_spans, max_bytes = self._options.max_batch_spans, self._options.max_batch_bytes
        async for entries in batch:
            for entry in entries:
                try:
                    # Without a coroutine in between, which would take time at every entry.
                    spans = await self._encoder.encode(entry)
                except UnreadableEntryError as error:
                    self._note_unreadable(entry, error)
                    spans = []
                # One by one: the spans of a generation's end can be larger than a request.
                for span in spans:
                    if request and (len(request) >= max_spans or num_bytes + len(span) > max_bytes):
                        await self._delivery.deliver(request, self._pick_waiting_span)
                        batch.mark_handled(entry.position - 1)
                        request, num_bytes = [], 0
                    request.append(span)
                    num_bytes += len(span)
                    self._batch_end = entry.position
                self._batch_end = entry.position
        if request:
            await self._delivery.deliver(request, self._pick_waiting_span)

    def note_progress(self) -> None:
        """Note that the cursor has moved, so that an earlier failure is over."""
        self.stats.retrying = False

    def note_failure(self, error: Exception) -> float:
        """Report the error that ended a batch; return the seconds until the next attempt."""
        kind = type(error).__name__
        self.stats.last_error = kind if self._hide_words else f"{kind}: {error}"
        self.stats.retrying = True
        self._log_exception("the export failed, and will be retried", error)
        return self._backoff.choose_next_s()

    async def close(self) -> None:
        """Close the sink; unanswered spans are sent again after the next start."""
        await self._sink.close()

    async def _pick_waiting_span(self) -> bytes | None:
        """Return a random span of the entries after the batch; None if none was found."""
        first = self._batch_end
        for _ in range(_NUM_TRIES):
            last = self._journal.committed_position
            if last <= first:
                break
            place = random.randrange(first, last)  # noqa: S311 - no secret
            for entry in await self._journal.read_committed(place, 1):
                with suppress(UnreadableEntryError):
                    if spans := await self._encoder.encode(entry):
                        return random.choice(spans)  # noqa: S311 - no secret
        return None

    def _note_unreadable(self, entry: Entry, error: UnreadableEntryError) -> None:
        self.stats.num_unreadable += 1
        self._log_exception(f"entry {entry.position} is not exported", error)

    def _log_exception(self, what: str, error: Exception) -> None:
        if self._hide_words:
            logger.error("%s: %s", what, type(error).__name__)
        else:
            logger.error(what, exc_info=error)
