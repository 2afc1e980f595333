"""Addresses that servers listen on."""

import ipaddress

NEEDS_GUARD = (
    "an address beyond loopback needs TLS and authentication: --tls-cert, --tls-key, and "
    "--auth-tokens or --auth-jwks"
)
"""Reason why an address is refused."""


def parse_host_port(text: str) -> tuple[str, int]:
    """Return host and port of "HOST:PORT" or "[IPV6]:PORT", the host without brackets.

    Raises:
        ValueError: the text is neither, or the port is above 65,535.
    """
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) < 65_536):
        raise ValueError("expected HOST:PORT or [IPV6]:PORT; port 0 takes a free one")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address; of names, only "localhost" counts as one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def is_ip_address(host: str) -> bool:
    """Return whether a host is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def group_address(host: str) -> str:
    """Return what the connections of one client have in common: an IPv4 address, or an IPv6 /64.

    Returns:
        "" for loopback, where proxies connect for many clients, and for what is no IP address.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            network = ipaddress.ip_network((address, 64), strict=False)
            return "" if address.is_loopback else str(network)
        address = address.ipv4_mapped
    return "" if address.is_loopback else str(address)
