"""Export of a training run's trace, configured by OpenTelemetry's variables.

python -m whence_server.training.export RECORD

A cursor file beside the record keeps the position up to which spans were sent. An attempt without a
recorded end is exported as killed, so run this after the training. With --follow, as a training
starts it (`training.export.start`), it follows the growing record, pushes metrics too, and ends
when its standard input ends.
"""

import argparse
import asyncio
import os
import sys
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from opentelemetry.sdk.resources import Resource

from whence_server import logs
from whence_server.config.environment import copy_environment
from whence_server.config.otlp import read_otlp_settings, read_span_destination
from whence_server.config.telemetry import read_push_options, read_resource, read_sampling
from whence_server.domain.errors import ConfigurationError, LineageError
from whence_server.lineage.reader import RecordReader
from whence_server.telemetry.export.resource import make_service_resource
from whence_server.telemetry.export.sinks import make_sink
from whence_server.telemetry.metrics.otlp import make_otlp_exporter
from whence_server.telemetry.metrics.push import choose_temporality
from whence_server.telemetry.sampling import make_sampler
from whence_server.telemetry.training.metrics import TrainingMetrics
from whence_server.training.export.start import FLUSH_S
from whence_server.training.export.trace_cursor import TraceCursor

SERVICE = "whence-training"
_METRICS_S = 5.0
_POLL_S = 0.5
_NICENESS = 10


def main() -> int:
    """Run the command.

    Returns:
        The exit status: 0 all sent; 1 not all sent; 2 a variable or the record cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="python -m whence_server.training.export",
        description="Send the trace of a training run, as configured by OpenTelemetry's variables.",
        epilog="exit status: 0 all sent; 1 not all; 2 a variable or the record cannot be used",
        allow_abbrev=False,
    )
    parser.add_argument("record", type=Path, help="lineage.binpb of the run")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="follow the record as it grows, until standard input ends",
    )
    parsed = parser.parse_args()
    logs.configure("warning", "console")
    if parsed.follow:
        os.nice(_NICENESS)
    try:
        return asyncio.run(_export(parsed.record, copy_environment(), follow=parsed.follow))
    except (ConfigurationError, LineageError) as error:
        print(f"the run's trace cannot be sent: {error}", file=sys.stderr)
        return 2


async def _export(record: Path, environment: Mapping[str, str], *, follow: bool) -> int:
    destination = read_span_destination(environment, "", "", "")
    about = {"service.name": SERVICE, "service.instance.id": _read_run_id(record)}
    resource = make_service_resource(version("whence"), about, read_resource(environment))
    metrics = _create_metrics(environment, resource) if follow else None
    if destination is None and metrics is None:
        raise ConfigurationError("no destination is set: set OTEL_EXPORTER_OTLP_ENDPOINT")
    sampler = make_sampler(read_sampling(environment))
    sink = None if destination is None else make_sink(destination)
    cursor = TraceCursor(
        record, sink, resource, version("whence"), sampler=sampler, metrics=metrics
    )
    ended = _watch_input() if follow else _create_set_event()
    try:
        all_sent = await _run(cursor, ended, FLUSH_S if follow else None)
    finally:
        if sink is not None:
            await sink.close()
    if metrics is not None and not await asyncio.to_thread(metrics.close, _METRICS_S):
        print("the run's last metrics were not sent", file=sys.stderr)
    stats = cursor.stats
    if not all_sent or stats.num_set_aside or stats.num_rejected:
        print(
            f"{stats.num_exported} spans of the run were sent, "
            f"{stats.num_rejected + stats.num_set_aside} were refused"
            f"{'' if all_sent else ', and more wait'}: {stats.last_error}",
            file=sys.stderr,
        )
    return 0 if all_sent else 1


async def _run(cursor: TraceCursor, ended: asyncio.Event, flush_s: float | None) -> bool:
    """Follow the record until the end, then flush for `flush_s`; return whether all was sent."""
    following = asyncio.create_task(_follow(cursor, ended))
    waiting = asyncio.create_task(ended.wait())
    await asyncio.wait({following, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        async with asyncio.timeout(flush_s):
            await following
    except TimeoutError:
        return False
    return True


async def _follow(cursor: TraceCursor, ended: asyncio.Event) -> None:
    while True:
        was_ended = ended.is_set()
        if await cursor.advance():
            continue
        if was_ended:
            break
        try:
            async with asyncio.timeout(_POLL_S):
                await ended.wait()
        except TimeoutError:
            pass
    await cursor.send_closing_spans()


def _create_metrics(environment: Mapping[str, str], resource: Resource) -> TrainingMetrics | None:
    destination = read_otlp_settings(environment, "metrics")
    options = read_push_options(destination, environment)
    if destination is None or options is None:
        return None
    exporter = make_otlp_exporter(destination, choose_temporality(options.preference))
    return TrainingMetrics(resource, version("whence"), exporter, options)


def _read_run_id(record: Path) -> str:
    """Read the id of a record's run.

    Raises:
        LineageError: the record cannot be read, or has no whole entry.
    """
    reader = RecordReader(record)
    if not reader.read(max_bytes=1):
        raise LineageError(f"{record} is not an intact record: it has no whole entry")
    return reader.training_run_id


def _create_set_event() -> asyncio.Event:
    ended = asyncio.Event()
    ended.set()
    return ended


def _watch_input() -> asyncio.Event:
    """Return an event that is set at the first byte, or the end, of standard input."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def watch() -> None:
        sys.stdin.buffer.read(1)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, name="end-of-input", daemon=True).start()
    return ended
