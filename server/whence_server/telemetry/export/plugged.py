"""Span exporters of users, with the interface of the OpenTelemetry SDK."""

import asyncio
import importlib
import logging
import threading
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from opentelemetry.sdk.trace.export import SpanExporter as SdkSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from whence_server.domain.errors import ConfigurationError
from whence_server.telemetry.export.outcomes import Accepted, Failed, Outcome
from whence_server.telemetry.export.readable import make_readable_spans

ENTRY_POINTS = "opentelemetry_traces_exporter"
_FLUSH_MS = 5_000
_CLOSE_S = 10.0

T = TypeVar("T")
logger = logging.getLogger(__name__)


class PluggedSink:
    """Sink that passes spans to an exporter of the SDK in a thread, one batch after the other.

    SUCCESS moves the cursor, as a collector's answer does. FAILURE and exceptions count as
    `Failed`, because exporters do not report whether the spans are at fault: the batch is sent
    again, and `Delivery` decides whether spans are given up.

    Args:
        exporter: exporter that receives the spans; shut down by `close`.
        name: name of the exporter in messages.
    """

    def __init__(self, exporter: SdkSpanExporter, name: str) -> None:
        self._exporter = exporter
        self._name = name

    async def export(self, request: bytes) -> Outcome:
        """Export the spans of one serialised ExportTraceServiceRequest."""
        try:
            result = await _run_in_thread(lambda: self._export(request))
        except Exception as error:  # noqa: BLE001 - a user's exporter must not end the export
            return Failed(f"{self._name} raised {type(error).__name__}: {error}")
        if result is SpanExportResult.SUCCESS:
            return Accepted()
        return Failed(f"{self._name} returned {getattr(result, 'name', repr(result))}")

    async def close(self) -> None:
        """Flush the exporter and shut it down, for at most `_CLOSE_S` seconds."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await _run_in_thread(self._close)
        except TimeoutError:
            logger.warning("%s did not shut down within %g s", self._name, _CLOSE_S)
        except Exception as error:  # noqa: BLE001 - its text may repeat content
            logger.warning("%s failed to shut down: %s", self._name, type(error).__name__)

    def _export(self, request: bytes) -> SpanExportResult:
        return self._exporter.export(list(make_readable_spans(request)))

    def _close(self) -> None:
        self._exporter.force_flush(_FLUSH_MS)
        self._exporter.shutdown()


def load_exporter(name: str) -> SdkSpanExporter:
    """Make an exporter, named by its entry point or as MODULE:CALLABLE.

    The callable is called without arguments, as by OpenTelemetry's configuration.

    Raises:
        ConfigurationError: no exporter has this name, or it cannot be made.
    """
    try:
        exporter = _find_callable(name)()
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"span exporter {name!r} cannot be made: {type(error).__name__}: {error}"
        ) from error
    if not all(callable(getattr(exporter, need, None)) for need in ("export", "shutdown")):
        raise ConfigurationError(
            f"span exporter {name!r} made {type(exporter).__name__}; expected an "
            "opentelemetry.sdk.trace.export.SpanExporter"
        )
    made: SdkSpanExporter = exporter
    return made


def _find_callable(name: str) -> Callable[[], Any]:
    module, colon, path = name.partition(":")
    if colon:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
        made: Callable[[], Any] = found
        return made
    installed = entry_points(group=ENTRY_POINTS)
    for entry_point in installed.select(name=name):
        loaded: Callable[[], Any] = entry_point.load()
        return loaded
    names = ", ".join(sorted({"otlp", "none"} | installed.names))
    raise ConfigurationError(
        f"span exporter {name!r} is not installed; choose {names}, or MODULE:CALLABLE"
    )


async def _run_in_thread(function: Callable[[], T]) -> T:
    """Run a function in a daemon thread, which does not keep the process alive if it hangs."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        def settle_unless_cancelled() -> None:
            if not done.done():
                outcome()

        # The loop may be closed when a hung thread returns.
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle_unless_cancelled)

    def run() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - raised in the caller
            settle(lambda error=error: done.set_exception(error))  # type: ignore[misc]
        else:
            settle(lambda: done.set_result(result))

    threading.Thread(target=run, name="span-exporter", daemon=True).start()
    return await done
