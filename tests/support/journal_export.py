"""Export of a journal's spans, composed as in the server."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from whence_server.telemetry.export.exporter import EntryEncoder, ExportOptions, JournalExporter
from whence_server.telemetry.export.outcomes import SpanSink
from whence_server.telemetry.export.resource import make_service_resource
from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.follower import DurableCursor, FollowOptions, JournalFollower
from whence_server.telemetry.journal import CursorStore, FollowedJournal
from whence_server.telemetry.lag import Lag
from whence_server.telemetry.spans.encoder import SpanEncoder

CURSOR = "otlp-spans"


class ExportedJournal(FollowedJournal, CursorStore, Protocol):
    """Journal of an export."""


class JournalExport:
    """Follower and exporter, with batches of as many entries as a request has spans."""

    def __init__(
        self,
        journal: ExportedJournal,
        sink: SpanSink,
        *,
        encoder: EntryEncoder | None = None,
        linger_s: float = 0.0,
        hide_words: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        **options: float,
    ) -> None:
        sizes = ExportOptions(**options)
        exporter = JournalExporter(
            journal,
            sink,
            encoder or SpanEncoder(journal),
            make_service_resource("0"),
            "0",
            options=sizes,
            hide_words=hide_words,
            sleep=sleep,
        )
        self.stats: ExportStats = exporter.stats
        self._follower = JournalFollower(
            journal,
            exporter,
            DurableCursor(journal, CURSOR),
            options=FollowOptions(sizes.max_batch_spans, linger_s),
            sleep=sleep,
            clock=clock,
        )

    def start(self) -> None:
        self._follower.start()

    def measure_lag(self) -> Lag:
        return self._follower.measure_lag()

    async def flush(self, timeout_s: float) -> bool:
        return await self._follower.flush(timeout_s)

    async def close(self) -> None:
        await self._follower.close()
