"""Push of metrics to an exporter at an interval."""

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
"""Failed pushes that are kept, an hour's at the default interval."""


def choose_temporality(preference: TemporalityPreference) -> dict[type, AggregationTemporality]:
    """Return the temporality of each class of instrument that is not cumulative."""
    delta: tuple[type, ...] = ()
    if preference is not TemporalityPreference.CUMULATIVE:
        delta = (Counter, Histogram)
    if preference is TemporalityPreference.DELTA:
        delta = (*delta, ObservableCounter)
    return dict.fromkeys(delta, AggregationTemporality.DELTA)


class MetricsPush:
    """Task that reads the metrics in the event loop at an interval, and exports them in a thread.

    Args:
        reader: reader of this output alone, made with the preference's temporality.
        exporter: exporter that sends the metrics; shut down with the push.
        options: interval and temporality of the push.
    """

    def __init__(
        self, reader: MetricsReader, exporter: MetricExporter, options: PushOptions
    ) -> None:
        self._reader = reader
        self._exporter = exporter
        self._interval_s = options.interval_s
        delta = Histogram in choose_temporality(options.preference)
        self._window = Window(
            AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
        )
        # Cumulative counts are in the next push again; a lost delta would be missing for good.
        self._unsent: deque[MetricsData] = deque()
        self._max_unsent = _MAX_UNSENT if delta else 1
        self._failing = False
        self._stopped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start pushing in the running event loop, first after one interval."""
        self._task = asyncio.create_task(self._run(), name="metrics-push")

    async def close(self, timeout_s: float) -> None:
        """Push a last time, for at most `timeout_s` seconds, and close the exporter."""
        self._stopped.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout_s)
        # Also ends a push that is still under way.
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
                    logger.warning(
                        "more than %d pushes of metrics failed: the oldest is dropped",
                        self._max_unsent,
                    )
            while self._unsent:
                oldest = self._unsent[0]
                taken = await asyncio.to_thread(self._send, oldest)
                self._log_change(taken=taken)
                if not taken:
                    break
                self._unsent.popleft()
        except Exception:  # a broken exporter must not end the pushing
            logger.exception("metrics were not pushed; the next push includes their counts")

    def _log_change(self, *, taken: bool) -> None:
        """Log the first push that fails, and the first that succeeds again."""
        if taken and self._failing:
            logger.warning("metrics are pushed again")
        elif not taken and not self._failing:
            logger.error(
                "metrics were not pushed: the destination did not accept them; %s",
                "up to 60 failed pushes are kept, and sent before the next one"
                if self._max_unsent > 1
                else "the next push includes their counts; the points until then are lost",
            )
        self._failing = not taken

    def _send(self, data: MetricsData) -> bool:
        return self._exporter.export(data) is MetricExportResult.SUCCESS
