"""Addresses to listen on: those of a host name, and what stands in the way of each.

gRPC says of an address in use only that it "failed to bind", so the reason is found here, before
gRPC binds anything.
"""

import errno
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path

from whence_server.domain.addresses import is_ip_address
from whence_server.rpc.calls import Endpoint

_TAKEN = "another process listens there; stop it, or choose another port"
_CONNECT_PATIENCE_S = 1.0
_PORTS_TRIED = 20


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


def find_obstacle(hosts: Sequence[str], port: int) -> str:
    """Return the reason why this process cannot listen on all addresses; "" if it can."""
    for host in hosts:
        reason = _find_obstacle(host, port)
        if reason:
            return reason if len(hosts) == 1 else f"{host}: {reason}"
    return ""


def find_duplicate(
    endpoint: Endpoint, hosts: Sequence[str], bound: Iterable[tuple[str, Endpoint]]
) -> str:
    """Return the reason if another address of this server is in the way; "" if none is.

    Args:
        endpoint: the address to listen on, with its actual port.
        hosts: its addresses, of `resolve_addresses`; none for a Unix socket.
        bound: the addresses that the server has bound, each after the setting that gives it.
    """
    for given, other in bound:
        if endpoint.port != other.port:
            shared = ""
        elif endpoint.port is None:
            is_same = _find_place(endpoint.address) == _find_place(other.address)
            shared = endpoint.address if is_same else ""
        else:
            shared = _find_shared(hosts, resolve_addresses(other.address))
        if shared:
            return f"{given} already includes {shared}; leave one of the two out, or change it"
    return ""


def choose_port(hosts: Sequence[str]) -> int:
    """Return a port that is free on all addresses; 0, for gRPC's choice, if there is one address.

    After many ports that are in use on one of the addresses, the last one is returned.
    """
    if len(hosts) == 1:
        return 0
    port = 0
    for _ in range(_PORTS_TRIED):
        with _open_socket(hosts[0]) as probe:
            probe.bind((hosts[0], 0))
            port = probe.getsockname()[1]
        if not find_obstacle(hosts, port):
            break
    return port


def _find_obstacle(host: str, port: int) -> str:
    try:
        with _open_socket(host) as probe:
            # Connections that were closed just now do not count, for gRPC neither.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return _TAKEN if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    # Not every system refuses an address in use, and a forwarded port is in use elsewhere.
    return _TAKEN if port and _answers(host, port) else ""


def _answers(host: str, port: int) -> bool:
    """Return whether somebody accepts connections."""
    try:
        with socket.create_connection((host, port), _CONNECT_PATIENCE_S) as probe:
            # With an unused port of the range for clients, a socket can connect to itself.
            return bool(probe.getsockname() != probe.getpeername())
    except OSError:
        return False


def _open_socket(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)


def _can_bind(address: str) -> bool:
    try:
        with _open_socket(address) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _find_shared(hosts: Sequence[str], others: Sequence[str]) -> str:
    """Return the first of the hosts that is also among the others; "" if none is."""
    taken = [_parse_ip(other) for other in others if is_ip_address(other)]
    for host in hosts:
        address = _parse_ip(host) if is_ip_address(host) else None
        # For 0.0.0.0 and for ::, gRPC listens on all addresses of both families.
        if address is not None and any(
            address == other or address.is_unspecified or other.is_unspecified for other in taken
        ):
            return host
    return ""


def _parse_ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address


def _find_place(path: str) -> Path:
    """Return the path of a Unix socket, with its directory's symbolic links resolved."""
    return Path(path).parent.resolve() / Path(path).name
