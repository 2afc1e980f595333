"""Public keys of an identity provider (RFC 7517), from a file or over HTTPS."""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt

from whence_server.access.changes import take_fingerprint
from whence_server.access.file_permissions import check_writers
from whence_server.domain.addresses import is_loopback
from whence_server.domain.errors import ConfigurationError, ProviderAwayError

_log = logging.getLogger(__name__)

FLAG = "--auth-jwks"
FRESH_S = 300.0
"""Age from which keys are fetched again, at the next call."""
PAUSE_S = 10.0
"""Least time between two fetches for the sake of unknown keys: anybody can send one.

So long after a changed file could not be used, it is read again.
"""
_FETCH_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
"""Times between two attempts to fetch the first keys: the first, and the longest."""
_MAX_BYTES = 1 << 20
_sleep = asyncio.sleep

ALGORITHMS = frozenset(
    f"{family}{bits}" for family in ("RS", "PS", "ES") for bits in (256, 384, 512)
) | {"EdDSA"}
"""Signatures that are accepted: those with a public key, and no other."""

Keys = dict[str, jwt.PyJWK]
"""Keys by their id."""


class _ProviderAwayError(ConfigurationError):
    """Nothing can be fetched from the provider."""


class KeySet:
    """The newest keys of a provider.

    Args:
        source: path of a file, or an HTTPS URL; plain HTTP on loopback alone.
        fetch: fetches the bytes at a URL.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        source: str,
        fetch: Callable[[str], Awaitable[bytes]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._path = None if "://" in source else Path(source)
        self._fetch = fetch or fetch_url
        self._clock = clock
        self._keys: Keys = {}
        self._seen: Any = None
        self._fetched_s = 0.0
        self._is_current = True
        """False if the newest keys could not be read."""
        self._lock = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None
        self._on_ready: Callable[[bool], Awaitable[None]] | None = None
        if self._path is None:
            _check_url(source)

    async def start(self) -> None:
        """Read the keys for the first time; ask a provider that is away until it answers.

        Raises:
            ConfigurationError: the file cannot be read, or it or the provider's answer has no keys.
        """
        self._seen = None if self._path is None else take_fingerprint(self._path)
        try:
            self._keys = await self._read()
        except _ProviderAwayError as error:
            self._refreshing = asyncio.create_task(self._fetch_first(error), name="jwks")
        self._fetched_s = self._clock()

    async def report(self, on_ready: Callable[[bool], Awaitable[None]]) -> None:
        """Call a function with False if the first keys are missing, then with True with them."""
        if not self._keys:
            self._on_ready = on_ready
            await on_ready(False)
            if self._keys:  # They came meanwhile, and True may have been told before False.
                await on_ready(True)

    async def find(self, key_id: str) -> jwt.PyJWK | None:
        """Return a key; None if the provider has none of this id.

        Raises:
            ProviderAwayError: the provider has not answered since the server started.
        """
        if not self._keys:
            raise ProviderAwayError
        if self._path is not None:
            seen = take_fingerprint(self._path)
            is_due = not self._is_current and self._clock() - self._fetched_s > PAUSE_S
            if seen != self._seen or is_due:
                self._seen = seen
                await self._renew()
        elif self._clock() - self._fetched_s > FRESH_S:
            self._renew_beside()
        if key_id not in self._keys and self._path is None:
            async with self._lock:
                # Another call may have fetched it meanwhile.
                if key_id not in self._keys and self._clock() - self._fetched_s > PAUSE_S:
                    await self._renew()
        return self._keys.get(key_id)

    async def close(self) -> None:
        """Stop fetching."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)

    async def _fetch_first(self, error: ConfigurationError) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._keys:
            _log.warning(
                "%s; until it can, callers with JWTs are refused with UNAVAILABLE, and the server "
                "is NOT_SERVING; the next attempt is in %g s",
                error,
                pause_s,
            )
            await _sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                self._keys = await self._read()
            except ConfigurationError as again:
                error = again
            except Exception as unexpected:  # noqa: BLE001 - without keys, the server would stay NOT_SERVING
                _log.exception("%s %s: the keys cannot be read", FLAG, self._source)
                error = ConfigurationError(f"{FLAG} {self._source}: {unexpected!r}")
        self._fetched_s = self._clock()
        _log.warning("%s %s: the keys are there", FLAG, self._source)
        if self._on_ready is not None:
            await self._on_ready(True)

    def _renew_beside(self) -> None:
        """Fetch without letting a caller wait: the present keys are still good."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._renew(), name="jwks")

    async def _renew(self) -> None:
        self._fetched_s = self._clock()
        try:
            self._keys = await self._read()
        except ConfigurationError as error:
            self._is_current = False
            _log.warning("%s; the keys of before stay valid", error)
        else:
            self._is_current = True

    async def _read(self) -> Keys:
        try:
            if self._path is not None:
                check_writers(FLAG, self._path)
                return parse_keys(self._path.read_bytes())
            return parse_keys(await self._fetch(self._source))
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            kind = _ProviderAwayError if self._path is None else ConfigurationError
            raise kind(f"{FLAG} {self._source}: cannot be read ({why})") from None
        except ValueError as error:
            raise ConfigurationError(f"{FLAG} {self._source}: {error}") from None


def parse_keys(content: bytes) -> Keys:
    """Parse a JWK set; keys that are secret, of unknown kinds or without an id are left out.

    Raises:
        ValueError: no key is left.
    """
    try:
        found = jwt.PyJWKSet.from_dict(json.loads(content.decode()))
    except (ValueError, TypeError, AttributeError, RecursionError, jwt.PyJWTError):
        raise ValueError("holds no JWK set with usable keys (RFC 7517)") from None
    keys = {
        key.key_id: key
        for key in found.keys
        if isinstance(key.key_id, str) and key.key_id and key.algorithm_name in ALGORITHMS
    }
    if not keys:
        raise ValueError(
            f"holds no public key with a kid for one of {', '.join(sorted(ALGORITHMS))}"
        )
    return keys


async def fetch_url(url: str) -> bytes:
    """Return the bytes at a URL.

    Raises:
        OSError: they cannot be fetched.
    """
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=_FETCH_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise OSError(f"HTTP status {answer.status}")
            content = await answer.content.read(_MAX_BYTES + 1)
            while len(content) <= _MAX_BYTES and (more := await answer.content.read(_MAX_BYTES)):
                content += more
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(str(error) or type(error).__name__) from error
    if len(content) > _MAX_BYTES:
        raise OSError(f"more than {_MAX_BYTES} bytes")
    return content


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"{FLAG}: expected a file or an https:// URL") from None
    if parts.username is not None or parts.password is not None:
        # The URL is not repeated: the message goes to the log.
        raise ConfigurationError(
            f"{FLAG}: expected a URL without user name and password; they would stand in the log, "
            "and a JWK set is public"
        )
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return
    raise ConfigurationError(
        f"{FLAG} {url}: expected a file or an https:// URL; plain HTTP would let anybody put "
        "other keys in their place"
    )
