"""The web server of two pages, in the event loop: the metrics, and how the server is."""

from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web

from whence_server.domain.errors import ConfigurationError
from whence_server.telemetry.health import HealthAnswer
from whence_server.telemetry.metrics.page import Page

PATH, HEALTH_PATH = "/metrics", "/healthz"
_SHUTDOWN_S = 1.0


class MetricsServer:
    """Serves `/metrics` and `/healthz`, and 404 for everything else.

    Args:
        render: gives the metrics for an Accept header; called in the event loop.
        health: says how the server is: 200 if it serves, 503 if not.
        host: an address or a name.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        render: Callable[[str], Page],
        health: Callable[[], HealthAnswer],
        host: str,
        port: int,
    ) -> None:
        self._render = render
        self._ask_health = health
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """Where it listens; before `start`, where it was told to."""
        return self._port

    @property
    def url(self) -> str:
        """The page's address."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}{PATH}"

    async def start(self) -> None:
        """Begins to listen.

        Raises:
            ConfigurationError: it cannot listen there.
        """
        application = web.Application()
        application.router.add_get(PATH, self._page)
        application.router.add_get(HEALTH_PATH, self._health)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except OSError as error:
            await runner.cleanup()
            raise ConfigurationError(
                f"the metrics page cannot listen on {self._host}:{self._port}: "
                f"{error.strerror or error}; choose a free port, or 0 for any"
            ) from error
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def close(self) -> None:
        """Stops listening; what is being answered gets a moment to end."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _page(self, request: web.Request) -> web.Response:
        page = self._render(",".join(request.headers.getall("Accept", [])))
        return web.Response(body=page.body, headers={"Content-Type": page.content_type})

    async def _health(self, _request: web.Request) -> web.Response:
        answer = self._ask_health()
        return web.Response(
            status=HTTPStatus.OK if answer.serving else HTTPStatus.SERVICE_UNAVAILABLE,
            body=answer.body,
            headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
        )
