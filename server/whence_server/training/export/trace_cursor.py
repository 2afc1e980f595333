"""Cursor on a training run's record that advances when a collector has accepted the spans."""

import asyncio
import json
import logging
import random
from pathlib import Path

from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.sampling import Sampler

from whence.v1.training_pb2 import TrainingRunStarted
from whence_server.domain.errors import LineageError
from whence_server.lineage.reader import RecordReader
from whence_server.telemetry.export.backoff import Backoff
from whence_server.telemetry.export.courier import Sleep
from whence_server.telemetry.export.delivery import Delivery
from whence_server.telemetry.export.outcomes import SpanSink
from whence_server.telemetry.export.resource import Envelope
from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.spans.ids import parse_hex_id
from whence_server.telemetry.spans.spans import describe_span, encode_span
from whence_server.telemetry.training.metrics import TrainingMetrics
from whence_server.telemetry.training.names import TRAINING_RUN
from whence_server.telemetry.training.trace import TrainingTrace

_log = logging.getLogger(__name__)

CURSOR_SUFFIX = ".sent"
_MAX_BATCH_SPANS = 256


class TraceCursor:
    """Exporter of the spans of a record, in order, each at least once.

    A file beside the record keeps the position, so that the export of a resumed run continues. A
    span that is sent twice is bitwise the same, except the root span (`TrainingTrace`).

    Args:
        record: path of the record.
        sink: destination of the spans; None sends none.
        resource: resource of the spans.
        version: whence's version.
        sampler: sampler that decides for the run's trace as a whole.
        metrics: receiver of the events after the cursor; None for none.
        sleep: sleep function for the delays between attempts, in seconds.
    """

    def __init__(
        self,
        record: Path,
        sink: SpanSink | None,
        resource: Resource,
        version: str,
        *,
        sampler: Sampler,
        metrics: TrainingMetrics | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.stats = ExportStats()
        self._record = record
        self._reader = RecordReader(record)
        self._cursor_file = record.with_name(record.name + CURSOR_SUFFIX)
        self._sampler = sampler
        self._metrics = metrics
        self._trace = TrainingTrace()
        self._sent_position = 0
        self._sends = sink is not None
        self._delivery: Delivery | None = None
        if sink is not None:
            envelope = Envelope(resource, version)
            self._delivery = Delivery(
                sink, envelope, self.stats, Backoff(), sleep, describe=describe_span
            )

    async def advance(self) -> bool:
        """Send the spans of new entries; return False if there were no new entries.

        Raises:
            LineageError: the record is not intact, or its run has no trace id.
        """
        events = await asyncio.to_thread(self._reader.read)
        spans: list[Span] = []
        for position, event in ((recorded.position, recorded.event) for recorded in events):
            if event.WhichOneof("event") == "started":
                self._begin(event.started)
            whole = self._trace.make_spans(event)
            if self._metrics is not None and (position > self._sent_position or position == 1):
                self._metrics.record(event)
            if position > self._sent_position:
                spans += whole
        await self._send(spans)
        if events and events[-1].position > self._sent_position:
            self._move_to(events[-1].position)
        return bool(events)

    async def send_closing_spans(self) -> None:
        """Send the spans that have no end on record: for when nobody writes it any more."""
        await self._send(self._trace.make_closing_spans())

    async def _send(self, spans: list[Span]) -> None:
        if self._delivery is None or not self._sends:
            return
        for begin in range(0, len(spans), _MAX_BATCH_SPANS):
            batch = spans[begin : begin + _MAX_BATCH_SPANS]
            behind = spans[begin + _MAX_BATCH_SPANS :]

            async def pick_other(behind: list[Span] = behind) -> bytes | None:
                return encode_span(random.choice(behind)) if behind else None  # noqa: S311 - no secret

            await self._delivery.deliver([encode_span(span) for span in batch], pick_other)

    def _begin(self, started: TrainingRunStarted) -> None:
        try:
            trace_id = parse_hex_id(started.trace_id, 16)
            parse_hex_id(started.span_id, 8)
        except ValueError as error:
            raise LineageError(f"{self._record}: its run has no trace: {error}") from None
        sampled = self._sampler.should_sample(None, int.from_bytes(trace_id), TRAINING_RUN)
        self._sends = sampled.decision.is_sampled()
        self._sent_position = self._read_cursor(started.training_run_id)

    def _read_cursor(self, training_run_id: str) -> int:
        try:
            cursor = json.loads(self._cursor_file.read_text())
            known = cursor["training_run_id"] == training_run_id
            return int(cursor["position"]) if known else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # sending again is harmless

    def _move_to(self, position: int) -> None:
        self._sent_position = position
        cursor = {"training_run_id": self._reader.training_run_id, "position": position}
        written = self._cursor_file.with_name(f"{self._cursor_file.name}.new")
        try:
            written.write_text(json.dumps(cursor))
            written.replace(self._cursor_file)
        except OSError as error:
            _log.debug("%s cannot be written: %s", self._cursor_file, error)
