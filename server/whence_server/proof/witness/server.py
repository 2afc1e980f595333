"""HTTP server of a witness, with limits of size and rate."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from whence_server.domain.addresses import group_address
from whence_server.domain.errors import ConfigurationError
from whence_server.proof.witness.witness import MAX_BODY_BYTES, Witness

_MAX_ADDRESSES = 4_096
_BODY_S = 10.0
"""Longest time in which a request's body arrives."""


class RateLimit:
    """Limit on the unsigned requests of each address: a bucket that fills at a constant rate.

    Args:
        per_second: requests that an address may make in the long run.
        burst: requests that it may make at once.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, address: str) -> bool:
        """Count one request; return False if the address has made too many."""
        now = self._clock()
        tokens, then = self._buckets.pop(address, (float(self._burst), now))
        tokens = min(tokens + (now - then) * self._per_second, self._burst)
        allowed = tokens >= 1
        # The newest is the last: the addresses that asked longest ago are forgotten first.
        self._buckets[address] = (tokens - allowed, now)
        if len(self._buckets) > _MAX_ADDRESSES:
            del self._buckets[next(iter(self._buckets))]
        return allowed


class WitnessServer:
    """Server of "/add-checkpoint".

    Args:
        witness: answers the requests.
        host: address or name to listen on.
        port: port to listen on; 0 chooses a free one.
        limit: limit on the requests of each address that no known log has signed.
    """

    def __init__(self, witness: Witness, host: str, port: int, limit: RateLimit) -> None:
        self._witness = witness
        self._host = host
        self._port = port
        self._limit = limit
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """URL of the witness, without a slash at its end."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    async def start(self) -> None:
        """Start listening.

        Raises:
            ConfigurationError: the address or port cannot be used.
        """
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.router.add_post("/add-checkpoint", self._answer)
        self._runner = web.AppRunner(application, access_log=None, keepalive_timeout=15)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigurationError(
                f"--listen {self._host}:{self._port} cannot be used: {error.strerror or error}"
            ) from error
        self._port = self._runner.addresses[0][1]

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_BODY_S):
                body = await request.read()
        except TimeoutError:
            response = web.Response(status=408, text=f"no whole request within {_BODY_S:g} s\n")
            response.force_close()
            return response
        # One request at a time: the memory is read and advanced without another one in between.
        answer = self._witness.answer(body)
        # A stranger with the address of a log's proxy cannot use up what the log may ask.
        if not answer.is_signed and not self._limit.take(_get_address(request)):
            return web.Response(status=429, text="too many requests\n")
        return web.Response(
            status=answer.status,
            body=answer.body.encode(),
            headers={"Content-Type": answer.content_type},
        )


def _get_address(request: web.Request) -> str:
    """Return what the requests of one client have in common: an address, or an IPv6 /64."""
    address = request.remote or ""
    return group_address(address) or address
