"""Connections to one upstream: requests out, answers in, every error translated."""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson

from whence_server.domain.errors import (
    UpstreamAwayError,
    UpstreamError,
    UpstreamMalformedError,
)
from whence_server.engines.upstream.wire.address import Address
from whence_server.engines.upstream.wire.api_key import ApiKey
from whence_server.engines.upstream.wire.documents import parse_object, quote
from whence_server.engines.upstream.wire.events import Event, EventReader
from whence_server.engines.upstream.wire.refusals import make_refusal


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Limits of time and size on what an upstream sends."""

    connect_s: float = 5.0
    """Seconds to connect, the TLS handshake included."""
    first_chunk_s: float = 600.0
    """Seconds until the first bytes of an answer: the upstream may queue the request and has to
    read its prompt."""
    idle_s: float = 120.0
    """Seconds between two pieces of a stream."""
    answer_s: float = 30.0
    """Seconds for the whole of an answer that is not streamed."""
    max_event_bytes: int = 4 << 20
    """Most bytes of one event or line of a stream."""
    max_body_bytes: int = 64 << 20
    """Most bytes of an answer that is not streamed."""
    max_error_bytes: int = 64 << 10
    """Bytes of an error's body that are read."""
    keep_alive_s: float = 4.0
    """Seconds that an idle connection stays open: less than the five after which the upstreams
    close it themselves, as a request could meet the close."""
    stale_s: float = 1.0
    """Seconds within which an idle connection breaks that the upstream closed before the request
    came. One that breaks later may break while the upstream computes the answer."""


_BROKEN = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
"""Errors of a connection that the upstream closed."""


@dataclass(slots=True)
class _Use:
    """Connection that one request uses."""

    is_old: bool = False
    """True if it comes from the pool."""


class Connection:
    """Pool of connections to one upstream.

    Proxies of the environment are not used, redirects are not followed, and cookies are not kept.
    It has no limit on connections: the server's own queue bounds the generations.

    Args:
        address: the upstream's address.
        api_key: key that is sent with every request.
        limits: limits on its answers.

    Attributes:
        on_open: called after each connection that is opened.
    """

    def __init__(self, address: Address, api_key: ApiKey, limits: WireLimits) -> None:
        self.address = address
        self.limits = limits
        self.name = f"the upstream at {address}"
        """The upstream in errors."""
        self._api_key = api_key
        self._session: aiohttp.ClientSession | None = None
        self.on_open: Callable[[], None] = lambda: None

    def make_twin(self) -> "Connection":
        """Return another pool of connections to the same upstream."""
        return Connection(self.address, self._api_key, self.limits)

    async def close(self) -> None:
        """Close all connections; requests that run end with an error."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get_object(self, route: str, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the JSON object at a route.

        Raises:
            UpstreamError: there is no answer, or another one.
        """
        return parse_object(*await self._ask("GET", route, None, {}, timeout_s))

    async def get_text(self, route: str) -> str:
        """Return the text at a route.

        Raises:
            UpstreamError: there is no answer, or one that is too large.
        """
        content, _ = await self._ask("GET", route, None, {}, None)
        return content.decode("utf-8", "replace")

    async def post_object(
        self, route: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Return the JSON object that answers a request.

        Raises:
            UpstreamError: there is no answer, or another one.
        """
        return parse_object(*await self._ask("POST", route, body, headers or {}, None))

    async def check(self, route: str, timeout_s: float) -> bool:
        """Return whether a route answers with success within the time."""
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._send("GET", route, None, {}) as response,
            ):
                return 200 <= response.status < 300
        except (TimeoutError, UpstreamError):
            return False

    async def stream(
        self,
        route: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        make_reader: Callable[[int], EventReader],
    ) -> AsyncGenerator[Event, None]:
        """Yield the pieces of a streamed answer as they arrive.

        Nothing is read ahead of the caller but what the sockets hold, so that a slow caller slows
        the upstream. Closing the generator closes the connection, by which the upstream notices.

        Args:
            route: path of the request.
            body: its JSON object.
            headers: more headers.
            make_reader: makes the reader of the answer's pieces, from their largest size in bytes.

        Raises:
            UpstreamError: the upstream is away, refuses, or sends what cannot be read.
        """
        reader = make_reader(self.limits.max_event_bytes)
        async with self._send("POST", route, body, headers) as response:
            await self._refuse_failure(response)
            timeout_s = self.limits.first_chunk_s
            while chunk := await self._read_chunk(response, timeout_s):
                timeout_s = self.limits.idle_s
                for event in reader.feed(chunk):
                    yield event
            for event in reader.finish():
                yield event

    async def _ask(
        self,
        method: str,
        route: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        timeout_s: float | None,
    ) -> tuple[bytes, str]:
        """Return the body of an answer, and its name in errors."""
        timeout_s = self.limits.answer_s if timeout_s is None else timeout_s
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._send(method, route, body, headers) as response,
            ):
                await self._refuse_failure(response)
                content = await self._read_body(response, self.limits.max_body_bytes)
        except TimeoutError:
            raise UpstreamAwayError(
                f"{self.name} did not answer {method} {route} within {timeout_s:g} s"
            ) from None
        if len(content) > self.limits.max_body_bytes:
            raise UpstreamMalformedError(
                f"{self.name} answered {method} {route} with more than "
                f"{self.limits.max_body_bytes} bytes, the most that whence takes"
            )
        return content, f"answer to {method} {route}"

    @asynccontextmanager
    async def _send(
        self, method: str, route: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; the connection goes back to the pool only if its answer was read."""
        data = None if body is None else orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS)
        sent = {**headers, **self._api_key.make_headers(), "Accept-Encoding": "identity"}
        if data is not None:
            sent["Content-Type"] = "application/json"
        response = await self._begin(method, route, data, sent)
        try:
            yield response
        finally:
            # An answer that was not read to its end keeps the connection from being used again.
            if response.content.at_eof():
                response.release()
            else:
                response.close()

    async def _begin(
        self, method: str, route: str, data: bytes | None, headers: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Send a request and return its answer once that has begun.

        A connection from the pool may have been closed by the upstream in the same moment: the
        request is then sent again. A new connection that breaks is an error, and so is an old one
        that breaks later: what the upstream has begun must not be computed twice.
        """
        session = self._get_session()
        url = self.address.join(route)
        while True:
            use, began_s = _Use(), time.monotonic()
            try:
                async with asyncio.timeout(self.limits.first_chunk_s):
                    return await session.request(
                        method,
                        url,
                        data=data,
                        headers=headers,
                        allow_redirects=False,
                        trace_request_ctx=use,
                    )
            except TimeoutError as error:
                raise self._make_timeout(error) from None
            except (aiohttp.ClientError, OSError) as error:
                is_stale = use.is_old and time.monotonic() - began_s < self.limits.stale_s
                if not (is_stale and isinstance(error, _BROKEN)):
                    raise self._translate(error, "cannot be reached") from None

    def _make_timeout(self, error: TimeoutError) -> UpstreamAwayError:
        if isinstance(error, aiohttp.ClientError):
            # aiohttp's own timeout is the one of connecting.
            return UpstreamAwayError(
                f"{self.name} could not be connected to within {self.limits.connect_s:g} s"
            )
        return UpstreamAwayError(
            f"{self.name} could not begin its answer within {self.limits.first_chunk_s:g} s"
        )

    async def _refuse_failure(self, response: aiohttp.ClientResponse) -> None:
        if 200 <= response.status < 300:
            return
        try:
            async with asyncio.timeout(self.limits.answer_s):
                content = await self._read_body(response, self.limits.max_error_bytes)
        except (TimeoutError, UpstreamError):
            content = b""
        authorization = self._api_key.make_headers().get("Authorization", "")
        raise make_refusal(
            self.name,
            response.status,
            response.headers,
            content[: self.limits.max_error_bytes],
            authorization.removeprefix("Bearer "),
        )

    async def _read_body(self, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        """Return the body, or the first bytes above the limit."""
        content = bytearray()
        while len(content) <= max_bytes:
            chunk = await self._read_chunk(response, self.limits.idle_s)
            if not chunk:
                break
            content += chunk
        return bytes(content)

    async def _read_chunk(self, response: aiohttp.ClientResponse, timeout_s: float) -> bytes:
        """Return the bytes that have arrived; b"" at the end."""
        try:
            async with asyncio.timeout(timeout_s):
                return await response.content.readany()
        except TimeoutError:
            raise UpstreamAwayError(
                f"{self.name} sent nothing for {timeout_s:g} s in the middle of its answer"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self._translate(
                error, "broke the connection in the middle of its answer"
            ) from None

    def _translate(self, error: Exception, what: str) -> UpstreamError:
        if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
            return UpstreamAwayError(f"{self.name} {what}: TLS failed: {quote(str(error))}")
        if isinstance(error, (aiohttp.ClientResponseError, aiohttp.InvalidURL)):
            return UpstreamMalformedError(f"{self.name} does not speak HTTP: {quote(str(error))}")
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        number, words = getattr(cause, "errno", None), getattr(cause, "strerror", None)
        # asyncio words the errors of connecting itself, and repeats the address.
        detail = os.strerror(number) if number and number > 0 else str(words or cause)
        detail = detail or type(error).__name__
        return UpstreamAwayError(f"{self.name} {what}: {quote(detail)}")

    def _get_session(self) -> aiohttp.ClientSession:
        # A session belongs to the loop that it is made in.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0, keepalive_timeout=self.limits.keep_alive_s, ttl_dns_cache=10
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self.limits.connect_s, sock_read=None
                ),
                trust_env=False,
                trace_configs=[self._make_trace()],
                headers={"User-Agent": "whence"},
            )
        return self._session

    def _make_trace(self) -> aiohttp.TraceConfig:
        """Return a trace that notes which requests use a connection of the pool, or open one."""

        async def note_reused(
            _session: aiohttp.ClientSession,
            context: SimpleNamespace,
            _parameters: aiohttp.TraceConnectionReuseconnParams,
        ) -> None:
            context.trace_request_ctx.is_old = True

        async def note_opened(
            _session: aiohttp.ClientSession,
            _context: SimpleNamespace,
            _parameters: aiohttp.TraceConnectionCreateEndParams,
        ) -> None:
            self.on_open()

        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(note_reused)
        trace.on_connection_create_end.append(note_opened)
        return trace
