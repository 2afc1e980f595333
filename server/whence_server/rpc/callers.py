"""Identification of a call's caller for the record."""

from urllib.parse import unquote

_MAX_PORT = 65_535


def parse_peer(peer: str) -> tuple[str, int | None]:
    """Parse gRPC's name of a peer, as in "ipv4:127.0.0.1:50000" or "ipv6:%5B::1%5D:50000".

    Returns:
        The IP address and the port; "unix" and None for a Unix socket; the name itself and None
        for every other form.
    """
    family, _, rest = peer.partition(":")
    if family == "unix":
        return "unix", None
    host, _, port = unquote(rest).rpartition(":")
    if family not in {"ipv4", "ipv6"} or not port.isdecimal() or int(port) > _MAX_PORT:
        return peer, None
    return host.removeprefix("[").removesuffix("]"), int(port)
