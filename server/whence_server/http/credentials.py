"""Credentials of an HTTP request."""

from aiohttp import web

from whence_server.access.credentials import (
    Credentials,
    list_certificate_names,
    read_certificate_end,
)
from whence_server.access.logins import Logins

_COOKIE = "whence-login"
# No other host, and no page without TLS, can set a cookie of such a name (RFC 6265bis, 4.1.3.2).
_SECURE_PREFIX = "__Host-"


def read_credentials(request: web.Request, logins: Logins | None = None) -> Credentials:
    """Return what the caller of a request shows.

    Args:
        request: the request.
        logins: logins that the cookie of a request may name; None where a cookie does not count.
    """
    transport = request.transport
    peer = transport and transport.get_extra_info("peername")
    certificate = transport and transport.get_extra_info("peercert")
    authorization = request.headers.get("Authorization", "")
    if not authorization and logins is not None:
        authorization = logins.find(read_login(request))
    return Credentials(
        authorization,
        list_certificate_names(certificate),
        address=peer[0] if peer else "",
        certificate_ends_s=read_certificate_end(certificate),
    )


def read_login(request: web.Request) -> str:
    """Return the cookie of a login; "" without one."""
    return request.cookies.get(name_login_cookie(request), "")


def name_login_cookie(request: web.Request) -> str:
    """Return the name of the cookie: the servers of one host share its cookies."""
    own = request.transport and request.transport.get_extra_info("sockname")
    name = f"{_COOKIE}-{own[1]}" if own else _COOKIE
    return f"{_SECURE_PREFIX}{name}" if is_secure(request) else name


def is_secure(request: web.Request) -> bool:
    """Return whether a request came over TLS to this server itself."""
    return request.transport is not None and bool(request.transport.get_extra_info("sslcontext"))
