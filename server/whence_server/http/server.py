"""Web server of the HTTP fronts, in the event loop."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from whence_server.domain.errors import ConfigurationError
from whence_server.http.connections import NEXT_REQUEST_S, Connections
from whence_server.http.origins import OWN_PAGES, Origins
from whence_server.http.security_headers import add_security_headers
from whence_server.rpc.address_bound import AddressBound

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]

HANDSHAKE_S = 5.0
"""Longest time of a TLS handshake."""
_SHUTDOWN_S = 1.0


class HttpServer:
    """Web server of the given routes, with 404 for every other path.

    A handler is cancelled when its caller disconnects.

    Args:
        routes: handlers by request method and path.
        host: address or name to listen on.
        port: port to listen on; 0 chooses a free one.
        not_found: handler of every other path.
        max_connections: most connections that are open at once.
        max_per_address: most of them that come from one address; 0 for no limit.
        tls: TLS of the connections; None for plain text.
        origins: rule for requests of browsers; their answers get its headers.
    """

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Answer],
        host: str,
        port: int,
        not_found: Answer,
        *,
        max_connections: int,
        max_per_address: int = 0,
        tls: ssl.SSLContext | None = None,
        origins: Origins = OWN_PAGES,
    ) -> None:
        self._routes = routes
        self._host = host
        self._port = port
        self._not_found = not_found
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._tls = tls
        self._origins = origins
        self._connections: Connections | None = None
        self._runner: web.AppRunner | None = None
        self._bound: AddressBound | None = None

    @property
    def url(self) -> str:
        """URL of the server, without a slash at its end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self._tls is None else 'https'}://{host}:{self._port}"

    async def start(self) -> None:
        """Start listening.

        Raises:
            ConfigurationError: the address or port cannot be used.
        """
        application = web.Application(middlewares=[self._mark_busy])
        application.on_response_prepare.append(self._origins.add_headers)
        application.on_response_prepare.append(add_security_headers)
        for (method, path), answer in self._routes.items():
            application.router.add_route(method, path, answer)
        application.router.add_route("*", "/{path:.*}", self._not_found)
        runner = web.AppRunner(
            application,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=NEXT_REQUEST_S,
            shutdown_timeout=_SHUTDOWN_S,
        )
        await runner.setup()
        if runner.server is None:
            raise RuntimeError("aiohttp made no server after setup")
        connections = Connections(
            runner.server, self._max_connections, max_per_address=self._max_per_address
        )
        try:
            listening = await asyncio.get_running_loop().create_server(
                connections,
                self._host,
                self._port,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else HANDSHAKE_S,
                ssl_shutdown_timeout=None if self._tls is None else _SHUTDOWN_S,
            )
        except OSError as error:
            await runner.cleanup()
            raise ConfigurationError(
                f"the HTTP server cannot listen on {self._host}:{self._port}: "
                f"{error.strerror or error}; choose a free port for --http-listen, or 0 for any"
            ) from error
        self._runner, self._listening, self._connections = runner, listening, connections
        self._port = listening.sockets[0].getsockname()[1]
        if self._tls is not None and self._max_per_address:
            # `Connections` learns of a connection after its handshake.
            self._bound = AddressBound({self._port}, self._max_per_address)
            self._bound.start()

    async def close(self) -> None:
        """Stop listening; requests under way get a second to end."""
        if self._bound is not None:
            await self._bound.close()
            self._bound = None
        if self._runner is not None:
            self._listening.close()
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _mark_busy(self, request: web.Request, handler: Answer) -> web.StreamResponse:
        """Mark the request's connection as busy until it is answered."""
        transport, connections = request.transport, self._connections
        if transport is None or connections is None:
            return await handler(request)
        connections.set_busy(transport)
        try:
            return await handler(request)
        finally:
            connections.set_idle(transport)
