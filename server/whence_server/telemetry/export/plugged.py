"""Span exporters that users bring along: anything with the OpenTelemetry SDK's interface."""

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
from whence_server.telemetry.export.readable import readable_spans

ENTRY_POINTS = "opentelemetry_traces_exporter"
_FLUSH_MS = 5_000
_CLOSE_S = 10.0

T = TypeVar("T")
logger = logging.getLogger(__name__)


class PluggedSink:
    """Gives spans to an exporter of the SDK's kind, in a thread, one batch after the other.

    SUCCESS is an answer like a collector's: the cursor moves. FAILURE and exceptions are
    taken for the destination's trouble, since exporters do not say whose it is: the batch is
    tried again, and spans are given up only as `Delivery` does.

    Args:
        exporter: whose `export` gets the spans; shut down by `close`.
        name: what to call it in messages.
    """

    def __init__(self, exporter: SdkSpanExporter, name: str) -> None:
        self._exporter = exporter
        self._name = name

    async def export(self, request: bytes) -> Outcome:
        """Hand over the spans of one serialised ExportTraceServiceRequest."""
        try:
            result = await _in_thread(lambda: self._export(request))
        except Exception as error:  # noqa: BLE001 - whatever it raises, ours goes on
            return Failed(f"{self._name} raised {type(error).__name__}: {error}")
        if result is SpanExportResult.SUCCESS:
            return Accepted()
        return Failed(f"{self._name} returned {getattr(result, 'name', repr(result))}")

    async def close(self) -> None:
        """Let the exporter finish, and shuts it down; not for longer than some seconds."""
        try:
            async with asyncio.timeout(_CLOSE_S):
                await _in_thread(self._close)
        except TimeoutError:
            logger.warning("%s did not shut down within %g s", self._name, _CLOSE_S)
        except Exception as error:  # noqa: BLE001 - ours goes on; its words may repeat content
            logger.warning("%s failed to shut down: %s", self._name, type(error).__name__)

    def _export(self, request: bytes) -> SpanExportResult:
        return self._exporter.export(list(readable_spans(request)))

    def _close(self) -> None:
        self._exporter.force_flush(_FLUSH_MS)
        self._exporter.shutdown()


def load_exporter(name: str) -> SdkSpanExporter:
    """Make an exporter: an installed one by its entry point's name, or MODULE:CALLABLE.

    The callable is called without arguments, as OpenTelemetry's own configuration does.

    Raises:
        ConfigurationError: there is none by this name, or it cannot be made.
    """
    try:
        exporter = _callable(name)()
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


def _callable(name: str) -> Callable[[], Any]:
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
        f"span exporter {name!r} is not installed; there are {names}, and MODULE:CALLABLE"
    )


async def _in_thread(function: Callable[[], T]) -> T:
    """Run a function in a daemon thread: one that hangs does not keep the process alive."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        def unless_cancelled() -> None:
            if not done.done():
                outcome()

        # The loop may be gone by the time that a hung thread comes back.
        if not loop.is_closed():
            loop.call_soon_threadsafe(unless_cancelled)

    def run() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - handed to the one who waits
            settle(lambda error=error: done.set_exception(error))  # type: ignore[misc]
        else:
            settle(lambda: done.set_result(result))

    threading.Thread(target=run, name="span-exporter", daemon=True).start()
    return await done
