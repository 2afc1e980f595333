"""The web server of two pages, in the event loop: the metrics, and how the server is."""

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

from whence_server.domain.errors import ConfigurationError
from whence_server.telemetry.health import HealthAnswer
from whence_server.telemetry.metrics.connections import (
    EXCHANGE_S,
    MAX_CONNECTIONS,
    Connections,
)
from whence_server.telemetry.metrics.page import Page

PATH, HEALTH_PATH = "/metrics", "/healthz"
_SHUTDOWN_S = 1.0


class MetricsServer:
    """Serves `/metrics` and `/healthz`, and 404 for everything else.

    A connection is closed after its answer: no idle one stays.

    Args:
        render: gives the metrics for an Accept header; called in the event loop.
        health: says how the server is: 200 if it serves, 503 if not.
        host: an address or a name.
        port: 0 takes a free one.
        max_connections: as many are open at once; the oldest gives way to the newest.
        exchange_s: how long one may stay open.
    """

    def __init__(
        self,
        render: Callable[[str], Page],
        health: Callable[[], HealthAnswer],
        host: str,
        port: int,
        *,
        max_connections: int = MAX_CONNECTIONS,
        exchange_s: float = EXCHANGE_S,
    ) -> None:
        self._render = render
        self._ask_health = health
        self._host = host
        self._port = port
        self._max_connections = max_connections
        self._exchange_s = exchange_s
        self._connections: Connections | None = None
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens; before `start`, where it was told to."""
        return self._port

    @property
    def num_connections(self) -> int:
        """The number of open connections."""
        return 0 if self._connections is None else len(self._connections)

    @property
    def url(self) -> str:
        """The page's address."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}{PATH}"

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            ConfigurationError: it cannot listen there.
        """
        application = web.Application(middlewares=[_closing])
        application.router.add_get(PATH, self._page)
        application.router.add_get(HEALTH_PATH, self._health)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        if runner.server is None:
            raise RuntimeError("the web server was set up and is not there")
        connections = Connections(runner.server, self._max_connections, self._exchange_s)
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                connections, self._host, self._port
            )
        except OSError as error:
            await runner.cleanup()
            raise ConfigurationError(
                f"the metrics page cannot listen on {self._host}:{self._port}: "
                f"{error.strerror or error}; choose a free port, or 0 for any"
            ) from error
        self._runner, self._connections = runner, connections
        self._port = self._listening.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening; what is being answered gets a moment to end."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
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


@web.middleware
async def _closing(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Close the connection after the answer, whatever that is."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.force_close()
        raise
    response.force_close()
    return response
