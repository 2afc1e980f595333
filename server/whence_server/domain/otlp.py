"""OTLP destination of one signal, and parsers of the OpenTelemetry variables that give it.

Each function raises ValueError on invalid text, with a message that says what would be right.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import SplitResult, urlsplit

Signal: TypeAlias = Literal["traces", "metrics", "logs"]

_DEFAULT_GRPC_PORT = 4317


class OtlpProtocol(StrEnum):
    """Transport protocols of OTLP."""

    GRPC = "grpc"
    HTTP_PROTOBUF = "http/protobuf"


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpSettings:
    """OTLP destination of one signal."""

    endpoint: str
    """gRPC: an endpoint for `parse_grpc_target`. HTTP: the full URL with the signal's path."""
    protocol: OtlpProtocol = OtlpProtocol.GRPC
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers of every request; names in lower case. Never logged, as they may hold keys."""
    timeout_s: float | None = 10.0
    """Seconds to wait for a response; None waits without limit."""
    gzip: bool = False
    insecure: bool = False
    """True if TLS is not used for a gRPC endpoint without a scheme."""
    certificate: Path | None = None
    """PEM file of trusted authorities, instead of the system's (gRPC: instead of grpcio's)."""
    client_key: Path | None = None
    """PEM file of the client's private key; needs `client_certificate`."""
    client_certificate: Path | None = None


def get_default_endpoint(protocol: OtlpProtocol, signal: Signal) -> str:
    """Return the default endpoint of an OpenTelemetry collector."""
    if protocol is OtlpProtocol.GRPC:
        return "http://localhost:4317"
    return append_signal_path("http://localhost:4318", signal)


def parse_grpc_target(endpoint: str, *, insecure: bool = False) -> tuple[str, bool]:
    """Return an endpoint's gRPC target, and whether to use TLS.

    Args:
        endpoint: "http://HOST:PORT", "https://HOST:PORT" (TLS), "HOST:PORT" or "unix:PATH".
        insecure: whether an endpoint without a scheme goes without TLS; a Unix socket always does.
    """
    advice = "give http://HOST:PORT, https://HOST:PORT, HOST:PORT or unix:PATH"
    if endpoint.startswith("unix:"):
        if endpoint == "unix:":
            raise ValueError(f"it has no socket path; {advice}")
        return endpoint, False
    scheme = "" if "://" in endpoint else ("http://" if insecure else "https://")
    url, port = _split(scheme + endpoint, advice)
    if url.path.strip("/") or url.query or url.fragment:
        raise ValueError(
            f"it has a path, query or fragment, which OTLP over gRPC does not use; {advice}"
        )
    host = url.hostname or ""
    port = port or _DEFAULT_GRPC_PORT
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", url.scheme == "https"


def check_http_url(endpoint: str) -> str:
    """Return a URL for OTLP over HTTP, checked."""
    advice = "give http://HOST:PORT/PATH or https://HOST:PORT/PATH"
    if "://" not in endpoint:
        raise ValueError(f"it has no scheme; {advice}")
    url, _ = _split(endpoint, advice)
    if url.fragment:
        raise ValueError(f"it has a fragment; {advice}")
    return endpoint


def append_signal_path(base: str, signal: Signal) -> str:
    """Append a signal's path to an endpoint that serves all signals."""
    url = urlsplit(check_http_url(base))
    path = url.path.rstrip("/")
    if url.query:
        raise ValueError(
            "it has a query, and the signal's path cannot be appended; give the URL without it"
        )
    if path.endswith(f"/v1/{signal}"):
        raise ValueError(f"it ends in /v1/{signal}, which is appended; give the URL without it")
    return url._replace(path=f"{path}/v1/{signal}").geturl()


def parse_timeout_s(text: str) -> float | None:
    """Read a timeout in milliseconds and return seconds; None if it is 0, which is no limit."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError("expected whole milliseconds, such as 10000; 0 is no limit")
    return int(text) / 1000 or None


def _split(url: str, advice: str) -> tuple[SplitResult, int | None]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"its scheme is {parts.scheme!r}; {advice}")
    if not host or re.search(r"[\s\x00-\x1f]", url):
        raise ValueError(f"it has no host, or has whitespace; {advice}")
    if parts.username is not None:
        raise ValueError(f"it has a user name; put credentials into OTLP's headers; {advice}")
    return parts, port
