"""Recognition of targets on this machine."""

import ipaddress
import re
import socket
from urllib.parse import unquote

_SOCKETS = ("unix:", "unix-abstract:", "vsock:")
_NAMES = {"localhost", "ip6-localhost", "ip6-loopback"}
_BRACKETED = re.compile(r"\[([^\]]+)\](:\d+)?")


def is_local(target: str) -> bool:
    """Return whether every address of a target of gRPC is on this machine.

    Names are not resolved: only `localhost` and names below it count (RFC 6761, section 6.3).
    """
    if target.startswith(_SOCKETS):
        return True
    scheme, found, rest = target.partition(":")
    if found and scheme in {"ipv4", "ipv6"}:
        return all(map(_is_local_host, map(_host, unquote(rest).split(","))))
    if found and scheme == "dns":
        # dns:HOST, dns:///HOST, dns://NAMESERVER/HOST
        target = rest.removeprefix("//").partition("/")[2] if rest.startswith("//") else rest
    return _is_local_host(_host(target))


def _host(host_and_port: str) -> str:
    if bracketed := _BRACKETED.fullmatch(host_and_port):
        return bracketed[1]
    host, found, port = host_and_port.rpartition(":")
    return host if found and port.isdecimal() and ":" not in host else host_and_port


def _is_local_host(host: str) -> bool:
    name = host.lower().removesuffix(".")
    if name in _NAMES or name.endswith(".localhost"):
        return True
    try:
        # It knows the short forms that resolvers take, such as 127.1.
        address: ipaddress.IPv4Address | ipaddress.IPv6Address
        address = ipaddress.IPv4Address(socket.inet_aton(name))
    except OSError:
        try:
            address = ipaddress.IPv6Address(name.partition("%")[0])
        except ValueError:
            return False
        address = address.ipv4_mapped or address
    return address.is_loopback or address.is_unspecified
