"""Resolution of host names to the addresses to listen on."""

import socket

from whence_server.domain.addresses import is_ip_address


def resolve_addresses(host: str) -> list[str]:
    """Return the addresses of this machine for a host name; an address is returned as it is.

    Given a name, gRPC listens if any one of its addresses is free: two servers on one name and
    port would share the callers. So the server binds each address by itself.
    """
    if is_ip_address(host):
        return [host]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        found = []
    names = [str(address[0]) for *_, address in found]
    if host == "localhost":
        # Clients try both addresses, even if the machine's files name only one.
        names += ["127.0.0.1", "::1"]
    # Without addresses, gRPC reports the fault of the name itself.
    return [name for name in dict.fromkeys(names) if _can_bind(name)] or [host]


def _can_bind(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
