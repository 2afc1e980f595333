"""Addresses that servers listen on."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Says whether only this machine reaches what listens there; names but "localhost" do not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def is_ip_address(host: str) -> bool:
    """Says whether it is an address already, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
