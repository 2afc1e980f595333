"""Web server of the metrics page and the health page, in the event loop."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import NamedTuple

from aiohttp import web

from whence_server.domain.errors import Code, ConfigurationError, WhenceError
from whence_server.telemetry.health import HealthAnswer
from whence_server.telemetry.metrics.connections import (
    EXCHANGE_S,
    MAX_CONNECTIONS,
    Connections,
)
from whence_server.telemetry.metrics.page import Page

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Admit = Callable[[str, web.Request], Awaitable[object]]

PATH, HEALTH_PATH = "/metrics", "/healthz"
_SHUTDOWN_S = 1.0
_HANDSHAKE_S = 5.0
_STATUSES = {
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}


class PageAccess(NamedTuple):
    """TLS of the connections, and admission of requests.

    Attributes:
        tls: None for plain text.
        admit: called before a request is answered, with "GET" and its path, and the request; its
            WhenceError is the answer. None admits everybody.
    """

    tls: ssl.SSLContext | None = None
    admit: Admit | None = None


PLAIN = PageAccess()


class MetricsServer:
    """Web server of `/metrics`, `/healthz` and public paths, with 404 for every other one.

    A connection is closed after its answer, so that none is idle.

    Args:
        render: returns the metrics page for an Accept header; called in the event loop.
        health: returns the health document; answered with 200 if the server serves, else 503.
        host: address or name to listen on.
        port: port to listen on; 0 chooses a free one.
        max_connections: most connections that are open at once; the oldest is aborted for the
            newest.
        exchange_s: longest duration of a connection in seconds.
        access: TLS, and admission of requests.
        public: handlers of further paths, which everybody may read.
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
        access: PageAccess = PLAIN,
        public: Mapping[tuple[str, str], Handler] = MappingProxyType({}),
    ) -> None:
        self._public = public
        self._render = render
        self._ask_health = health
        self._host = host
        self._port = port
        self._max_connections = max_connections
        self._exchange_s = exchange_s
        self._tls, self._admit = access
        self._connections: Connections | None = None
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Port that it listens on; before `start`, the port of the constructor."""
        return self._port

    @property
    def num_connections(self) -> int:
        """Number of open connections."""
        return 0 if self._connections is None else len(self._connections)

    @property
    def url(self) -> str:
        """URL of the metrics page."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{host}:{self._port}{PATH}"

    async def start(self) -> None:
        """Start listening.

        Raises:
            ConfigurationError: the address or port cannot be used.
        """
        application = web.Application(middlewares=[_close_after_answer, self._refuse])
        application.router.add_get(PATH, self._answer_page)
        application.router.add_get(HEALTH_PATH, self._answer_health)
        for (method, path), answer in self._public.items():
            application.router.add_route(method, path, answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        if runner.server is None:
            raise RuntimeError("aiohttp made no server after setup")
        connections = Connections(runner.server, self._max_connections, self._exchange_s)
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                connections,
                self._host,
                self._port,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else _HANDSHAKE_S,
                ssl_shutdown_timeout=None if self._tls is None else _SHUTDOWN_S,
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
        """Stop listening; requests under way get a second to end."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _refuse(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a caller that is not admitted with its error."""
        if self._admit is not None and request.path in {PATH, HEALTH_PATH}:
            try:
                await self._admit(f"GET {request.path}", request)
            except WhenceError as error:
                status = _STATUSES.get(error.code, HTTPStatus.FORBIDDEN)
                asks = status is HTTPStatus.UNAUTHORIZED
                headers = {"WWW-Authenticate": "Bearer"} if asks else {}
                return web.Response(status=status, text=error.message, headers=headers)
        return await handler(request)

    async def _answer_page(self, request: web.Request) -> web.Response:
        page = self._render(",".join(request.headers.getall("Accept", [])))
        return web.Response(body=page.body, headers={"Content-Type": page.content_type})

    async def _answer_health(self, _request: web.Request) -> web.Response:
        answer = self._ask_health()
        return web.Response(
            status=HTTPStatus.OK if answer.serving else HTTPStatus.SERVICE_UNAVAILABLE,
            body=answer.body,
            headers={"Content-Type": "application/json", "Cache-Control": "no-store"},
        )


@web.middleware
async def _close_after_answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Close the connection after the answer, also after an error."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.force_close()
        raise
    response.force_close()
    return response
