"""Pushes metrics at an interval; how they travel is the exporter's business."""

import asyncio
import logging
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from opentelemetry.sdk.metrics import Counter, Histogram, ObservableCounter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpSettings
from whence_server.telemetry.metrics.reader import MetricsReader
from whence_server.telemetry.metrics.window import Window

logger = logging.getLogger(__name__)

_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_MAX_UNSENT = 60
"""Pushes that are kept while none gets through: an hour's."""
_PREFERENCE = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


class Preference(Enum):
    """Which numbers count from the start of the process, and which since the last push."""

    CUMULATIVE = "cumulative"
    DELTA = "delta"
    LOW_MEMORY = "lowmemory"

    def temporality(self) -> dict[type, AggregationTemporality]:
        """Gives the temporality of the instruments that do not count from the start."""
        delta: tuple[type, ...] = ()
        if self is not Preference.CUMULATIVE:
            delta = (Counter, Histogram)
        if self is Preference.DELTA:
            delta = (*delta, ObservableCounter)
        return dict.fromkeys(delta, AggregationTemporality.DELTA)


@dataclass(frozen=True, slots=True)
class PushOptions:
    """How metrics are pushed.

    Attributes:
        destination: where to.
        interval_s: from one push to the next.
        preference: what numbers count from.
    """

    destination: OtlpSettings
    interval_s: float = 60.0
    preference: Preference = Preference.CUMULATIVE

    @classmethod
    def from_environment(
        cls, destination: OtlpSettings | None, environment: Mapping[str, str]
    ) -> "PushOptions | None":
        """Reads the standard variables that only metrics have; an empty one counts as unset.

        Args:
            destination: where to; None checks the variables alone, and gives None.
            environment: where they are.

        Raises:
            ConfigurationError: a variable has a value that means nothing.
        """
        interval_s = _interval_s(environment.get(_INTERVAL, "").strip() or "60000")
        preference = _preference(environment.get(_PREFERENCE, "").strip().lower() or "cumulative")
        return None if destination is None else cls(destination, interval_s, preference)


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
        delta = Histogram in options.preference.temporality()
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
        """Starts pushing in the running event loop, first after one interval."""
        self._task = asyncio.create_task(self._run(), name="metrics-push")

    async def close(self, timeout_s: float) -> None:
        """Pushes a last time, for as long as that may take, and lets go of connections."""
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
            self._unsent.append(self._window.of(self._reader.read()))
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
        """Logs the first push that fails, and the first that gets through again."""
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


def _preference(text: str) -> Preference:
    try:
        return Preference(text)
    except ValueError:
        known = ", ".join(choice.value for choice in Preference)
        raise ConfigurationError(f"{_PREFERENCE} {text!r}: expected one of {known}") from None


def _interval_s(text: str) -> float:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) == 0:
        raise ConfigurationError(f"{_INTERVAL} {text!r}: expected whole milliseconds above 0")
    return int(text) / 1e3
