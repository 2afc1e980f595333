"""Page that Prometheus scrapes."""

from collections.abc import Iterator
from typing import NamedTuple

from opentelemetry.sdk.resources import Resource
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric as Family
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from whence_server.telemetry.live import LiveServer
from whence_server.telemetry.metrics.prometheus import Translation, make_target_info
from whence_server.telemetry.metrics.reader import MetricsReader

ENGINE_NAMESPACE = "whence_engine"
_NO_PROCESS = "none"


class Page(NamedTuple):
    """Answer to one scrape."""

    body: bytes
    content_type: str


class PrometheusPage:
    """Page of the metrics, the server's resource, and the resource use of both processes.

    Args:
        reader: reader of this output alone.
        resource: resource of the server, shown as `target_info`.
        live: the running server, which knows the engine's process id.
    """

    def __init__(self, reader: MetricsReader, resource: Resource, live: LiveServer) -> None:
        self._reader = reader
        self._resource = resource
        self._translation = Translation()
        self._processes = (
            ProcessCollector(registry=None),
            ProcessCollector(ENGINE_NAMESPACE, pid=lambda: _find_engine_pid(live), registry=None),
        )

    def render(self, accept: str = "") -> Page:
        """Return the page as OpenMetrics with exemplars if that is accepted, else as text.

        Args:
            accept: value of the request's Accept header.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # the header has a malformed version
            encode, content_type = choose_encoder("")
        return Page(encode(_Families(list(self._collect_families()))), content_type)

    def _collect_families(self) -> Iterator[Family]:
        yield make_target_info(self._resource)
        yield from self._translation.translate(self._reader.read())
        for process in self._processes:
            yield from process.collect()


class _Families(Collector):
    """Collector of given families, which the encoders take."""

    def __init__(self, families: list[Family]) -> None:
        self._collect_families = families

    def collect(self) -> list[Family]:
        return self._collect_families


def _find_engine_pid(live: LiveServer) -> int | str:
    """Return the engine's process id once the model is loaded, else `_NO_PROCESS`."""
    engine = live.engine if live.generations is not None else None
    pid = None if engine is None else engine.pid
    return _NO_PROCESS if pid is None else pid
