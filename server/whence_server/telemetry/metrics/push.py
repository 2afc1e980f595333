"""Pushes metrics at an interval; how they travel is the exporter's business."""

import asyncio
import logging
from collections import deque

from opentelemetry.sdk.metrics import Counter, Histogram, ObservableCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)

from whence_server.domain.telemetry import PushOptions, TemporalityPreference
from whence_server.telemetry.metrics.reader import MetricsReader
from whence_server.telemetry.metrics.window import Window

logger = logging.getLogger(__name__)

_MAX_UNSENT = 60
"""Pushes that are kept while none gets through: an hour's."""


def temporality_of(preference: TemporalityPreference) -> dict[type, AggregationTemporality]:
    """Return the temporality of the instruments that do not count from the process's start."""
    delta: tuple[type, ...] = ()
    if preference is not TemporalityPreference.CUMULATIVE:
        delta = (Counter, Histogram)
    if preference is TemporalityPreference.DELTA:
        delta = (*delta, ObservableCounter)
    return dict.fromkeys(delta, AggregationTemporality.DELTA)


class MetricsPush:
    """Reads in the event loop, so that nothing is looked at from two threads, and sends outside.

    Args:
        reader: this output's own, made with the preference's temporality.
        exporter: where metrics go; shut down with the push.
        options: see there.
    """

    def __init__(
        self, reader: MetricsReader, exporter: MetricExporter, options: PushOptions
    ) -> None:
        self._reader = reader
        self._exporter = exporter
        self._interval_s = options.interval_s
        delta = Histogram in temporality_of(options.preference)
        self._window = Window(
            AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
        )
        # What counts from the start is in the next push again; what counts from the last is not.
        self._unsent: deque[MetricsData] = deque()
        self._max_unsent = _MAX_UNSENT if delta else 1
        self._failing = False
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start pushing in the running event loop, first after one interval."""
        self._task = asyncio.create_task(self._run(), name="metrics-push")

    async def close(self, timeout_s: float) -> None:
        """Push a last time, for as long as that may take, and lets go of connections."""
        self._stopped.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout_s)
        # Ends a push that is still under way, too.
        await asyncio.to_thread(self._exporter.shutdown)
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._stopped.wait()
            except TimeoutError:
                pass
            await self._push()

    async def _push(self) -> None:
        try:
            self._unsent.append(self._window.apply(self._reader.read()))
            if len(self._unsent) > self._max_unsent:
                self._unsent.popleft()
                if self._max_unsent > 1:
                    logger.warning("%d pushes failed: the oldest is dropped", self._max_unsent)
            while self._unsent:
                oldest = self._unsent[0]
                taken = await asyncio.to_thread(self._send, oldest)
                self._tell(taken=taken)
                if not taken:
                    break
                self._unsent.popleft()
        except Exception:  # a broken exporter must not end the pushing
            logger.exception("metrics were not pushed; what they count comes with the next push")

    def _tell(self, *, taken: bool) -> None:
        """Log the first push that fails, and the first that gets through again."""
        if taken and self._failing:
            logger.warning("metrics are pushed again")
        elif not taken and not self._failing:
            logger.error(
                "metrics were not pushed: the destination did not take them; %s",
                "up to 60 pushes are kept and sent before the next"
                if self._max_unsent > 1
                else "the next push has the same counts, and the points until then are missing",
            )
        self._failing = not taken

    def _send(self, data: MetricsData) -> bool:
        return self._exporter.export(data) is MetricExportResult.SUCCESS
