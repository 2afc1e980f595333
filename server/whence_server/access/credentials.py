"""Credentials: a token, a certificate, or a place on the same machine."""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_KINDS = {"DNS": "DNS", "URI": "URI", "email": "EMAIL", "IP Address": "IP"}


@dataclass(frozen=True, slots=True)
class Credentials:
    """Credentials of one call.

    Attributes:
        authorization: value of the authorization header; "" without one.
        names: names in the client's certificate, as "URI:spiffe://a/b" or "CN:name"; empty without
            a certificate.
        is_local_socket: True if the call came over a Unix socket.
        address: address that the call came from, for the log.
        certificate_ends_s: Unix time at which the client's certificate expires; None without one.
    """

    authorization: str = ""
    names: tuple[str, ...] = ()
    is_local_socket: bool = False
    address: str = ""
    certificate_ends_s: float | None = None

    @property
    def token(self) -> str:
        """The bearer token (RFC 6750); "" without one."""
        scheme, _, token = self.authorization.strip().partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""


def list_certificate_names(certificate: Any) -> tuple[str, ...]:
    """Return the names in a certificate as `ssl.SSLSocket.getpeercert` returns it."""
    if not certificate:
        return ()
    alternative = [
        f"{_KINDS[kind]}:{value}"
        for kind, value in certificate.get("subjectAltName", ())
        if kind in _KINDS
    ]
    common = [
        f"CN:{value}"
        for relative in certificate.get("subject", ())
        for key, value in relative
        if key == "commonName"
    ]
    return (*alternative, *common)


def read_certificate_end(certificate: Any) -> float | None:
    """Return the Unix time at which a certificate of `getpeercert` expires; None without one."""
    return ssl.cert_time_to_seconds(certificate["notAfter"]) if certificate else None


@lru_cache(maxsize=1_024)
def parse_certificate_end(pem: bytes) -> float | None:
    """Return the Unix time at which a certificate in PEM format expires; None if unreadable."""
    # Imported here, because cryptography takes long to import, and many servers have no TLS.
    from cryptography.x509 import load_pem_x509_certificate

    try:
        return load_pem_x509_certificate(pem).not_valid_after_utc.timestamp()
    except ValueError:
        return None


def list_peer_names(properties: Iterable[tuple[str, Iterable[bytes]]]) -> tuple[str, ...]:
    """Return the names in a certificate as `grpc.ServicerContext.auth_context` returns it."""
    kinds = {
        "peer_dns": "DNS",
        "peer_uri": "URI",
        "peer_email": "EMAIL",
        "peer_ip": "IP",
        "x509_common_name": "CN",
    }
    found = dict(properties)
    return tuple(
        f"{kind}:{value.decode(errors='replace')}"
        for key, kind in kinds.items()
        for value in found.get(key, ())
    )
