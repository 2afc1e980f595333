"""Credentials of an HTTP request."""

from aiohttp import web

from whence_server.access.credentials import (
    Credentials,
    list_certificate_names,
    read_certificate_end,
)


def read_credentials(request: web.Request) -> Credentials:
    """Return what the caller of a request shows."""
    transport = request.transport
    peer = transport and transport.get_extra_info("peername")
    certificate = transport and transport.get_extra_info("peercert")
    return Credentials(
        request.headers.get("Authorization", ""),
        list_certificate_names(certificate),
        address=peer[0] if peer else "",
        certificate_ends_s=read_certificate_end(certificate),
    )
