"""Requests that a browser sends for pages of other origins: refused, unless the origin is allowed.

A page of any site can make a browser on this machine send requests to loopback. Browsers say so:
in `Sec-Fetch-Site`, which no page can change (W3C, "Fetch Metadata Request Headers"), and in
`Origin` (RFC 6454). A page whose name was rebound to this machine's address counts as of the same
origin; its requests have its name in `Host`. Programs other than browsers send neither header.
"""

from collections.abc import Collection
from http import HTTPStatus
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from whence_server.domain.addresses import is_ip_address
from whence_server.domain.errors import HostRefusedError, OriginRefusedError
from whence_server.http.exchange import (
    GENERATION_ID_HEADER,
    UNRECORDED_HEADER,
    Exchange,
    Handler,
)

_SITE = "Sec-Fetch-Site"
_OWN_SITES = frozenset({"same-origin", "none"})
"""Values of the header for the server's own pages, and for what a person typed or opened."""
_EXPOSED = ", ".join(
    (GENERATION_ID_HEADER, UNRECORDED_HEADER, "x-request-id", "traceparent", "retry-after")
)
_PREFLIGHT_S = 600


class Origins:
    """Rule for requests of browsers.

    Args:
        allowed: origins whose pages may send requests and read the answers.
        checks_host: whether the name in `Host` has to be one of this machine's own, as on a
            loopback address.
    """

    def __init__(self, allowed: Collection[str] = (), *, checks_host: bool = False) -> None:
        self._allowed = frozenset(allowed)
        self._checks_host = checks_host
        self._allowed_names = {urlsplit(origin).hostname for origin in allowed}

    def check(self, request: web.Request) -> None:
        """Raise if the request is one for a page that is not allowed.

        Raises:
            HostRefusedError: it was sent to a name that is not this machine's.
            OriginRefusedError: it was sent for a page of another origin.
        """
        host = self._check_host(request)
        origin = request.headers.get(hdrs.ORIGIN)
        if origin in self._allowed:
            return
        site = request.headers.get(_SITE)
        if site is not None:
            own = site in _OWN_SITES
        else:
            own = origin is None or _get_netloc(origin) == host.lower()
        if not own:
            raise OriginRefusedError(origin or "")

    def protect(self, handle: Handler, *, is_page: bool = False) -> Handler:
        """Wrap a handler: requests for pages that are not allowed are refused.

        Args:
            handle: the handler.
            is_page: whether links of other sites may open what it shows, in a window of its own.
        """

        async def answer(exchange: Exchange) -> web.StreamResponse:
            if not (is_page and self._opens_page(exchange.request)):
                self.check(exchange.request)
            return await handle(exchange)

        return answer

    def _opens_page(self, request: web.Request) -> bool:
        """Return whether a person opens a page by a link; its name is still checked."""
        self._check_host(request)
        asked = request.headers
        return (
            request.method == hdrs.METH_GET
            and asked.get("Sec-Fetch-Mode") == "navigate"
            and asked.get("Sec-Fetch-Dest") == "document"
        )

    def _check_host(self, request: web.Request) -> str:
        host = request.headers.get(hdrs.HOST, "")
        if self._checks_host and host and not self._is_own(_get_name(host)):
            raise HostRefusedError(host)
        return host

    async def answer_preflight(self, exchange: Exchange) -> web.StreamResponse:
        """Tell a browser what a page of an allowed origin may send (Fetch, "CORS protocol")."""
        asked = exchange.request.headers
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, DELETE",
            hdrs.ACCESS_CONTROL_MAX_AGE: str(_PREFLIGHT_S),
        }
        wanted = asked.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS)
        if wanted is not None:
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
        return web.Response(status=HTTPStatus.NO_CONTENT, headers=headers)

    async def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let pages of an allowed origin read an answer."""
        if not self._allowed:
            return
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        origin = request.headers.get(hdrs.ORIGIN)
        if origin in self._allowed:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED

    def _is_own(self, name: str) -> bool:
        """Return whether a name cannot be one that someone else has let point to this machine."""
        return (
            is_ip_address(name)
            or name == "localhost"
            or name.endswith(".localhost")
            or name in self._allowed_names
        )


OWN_PAGES = Origins()
"""Rule that allows the server's own pages alone, under any name."""


def _get_name(host: str) -> str:
    """Return the name in a `Host` header, without the port; "" if it is malformed."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _get_netloc(origin: str) -> str | None:
    """Return the name and port in an `Origin` header; None if it is malformed."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
