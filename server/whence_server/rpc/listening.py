"""The addresses that a server listens on where it was given a host's name."""

import socket

from whence_server.domain.addresses import is_ip_address


def listening_addresses(host: str) -> list[str]:
    """Return the addresses of this machine that a host's name stands for; an address is itself.

    gRPC, given a name, is content with the first of them that is free: two servers on one name and
    port would each have one, and share the callers between them. So each is asked for by itself.
    """
    if is_ip_address(host):
        return [host]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        found = []
    names = [str(address[0]) for *_, address in found]
    if host == "localhost":
        # Clients look for it in both places, whatever the machine's files say.
        names += ["127.0.0.1", "::1"]
    # Where there are none, gRPC says of the name itself what is wrong with it.
    return [name for name in dict.fromkeys(names) if _is_here(name)] or [host]


def _is_here(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
