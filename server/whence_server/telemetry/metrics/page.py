"""The page that Prometheus scrapes."""

from collections.abc import Iterator
from typing import NamedTuple

from opentelemetry.sdk.resources import Resource
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from whence_server.telemetry.live import LiveServer
from whence_server.telemetry.metrics.prometheus import Translation, target_info
from whence_server.telemetry.metrics.reader import MetricsReader

ENGINE_NAMESPACE = "whence_engine"
_NO_PROCESS = "none"


class Page(NamedTuple):
    """One answer."""

    body: bytes
    content_type: str


class PrometheusPage:
    """Renders everything: the metrics, who reports them, and both processes' resources.

    Args:
        reader: the page's own.
        resource: shown as `target_info`.
        live: knows the engine's process.
    """

    def __init__(self, reader: MetricsReader, resource: Resource, live: LiveServer) -> None:
        self._reader = reader
        self._resource = resource
        self._translation = Translation()
        self._processes = (
            ProcessCollector(registry=None),
            ProcessCollector(ENGINE_NAMESPACE, pid=lambda: _engine_process(live), registry=None),
        )

    def render(self, accept: str = "") -> Page:
        """Return the page as OpenMetrics, with exemplars, where that is accepted, else as text.

        Args:
            accept: the request's Accept header.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no version
            encode, content_type = choose_encoder("")
        return Page(encode(_Families(list(self._families()))), content_type)

    def _families(self) -> Iterator[Family]:
        yield target_info(self._resource)
        yield from self._translation.families(self._reader.read())
        for process in self._processes:
            yield from process.collect()


class _Families(Collector):
    """What the encoders take."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families


def _engine_process(live: LiveServer) -> int | str:
    """Return the engine's process once the model is loaded."""
    engine = live.engine if live.generations is not None else None
    pid = None if engine is None else engine.pid
    return _NO_PROCESS if pid is None else pid
