"""Credentials of a gRPC call."""

from typing import Any

from whence_server.access.credentials import (
    Credentials,
    list_peer_names,
    parse_certificate_end,
)
from whence_server.rpc.callers import parse_peer


def read_credentials(context: Any) -> Credentials:
    """Return what the caller of a `grpc.aio.ServicerContext` shows."""
    authorization = ""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            authorization = value if isinstance(value, str) else value.decode(errors="replace")
    peer = context.peer()
    shown = context.auth_context()
    pem = next(iter(shown.get("x509_pem_cert", ())), b"")
    return Credentials(
        authorization,
        list_peer_names(shown.items()),
        peer.startswith("unix:"),
        parse_peer(peer)[0],
        parse_certificate_end(pem) if pem else None,
    )
