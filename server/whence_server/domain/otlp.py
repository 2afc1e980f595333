"""Where one signal goes over OTLP, and how the OpenTelemetry variables spell it.

Every function here raises ValueError for what it cannot read, and says what would be right.
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
    """How OTLP travels."""

    GRPC = "grpc"
    HTTP_PROTOBUF = "http/protobuf"


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpSettings:
    """One signal's destination."""

    endpoint: str
    """gRPC: what `parse_grpc_target` reads. HTTP: the whole URL, the signal's path included."""
    protocol: OtlpProtocol = OtlpProtocol.GRPC
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request; names in lower case. They hold keys: never shown."""
    timeout_s: float | None = 10.0
    """How long an answer may take; None is for ever."""
    gzip: bool = False
    insecure: bool = False
    """A gRPC endpoint without a scheme is spoken to without TLS."""
    certificate: Path | None = None
    """PEM: whom to trust, instead of the system's authorities (gRPC: those of grpcio)."""
    client_key: Path | None = None
    """PEM: ours, together with the next."""
    client_certificate: Path | None = None


def get_default_endpoint(protocol: OtlpProtocol, signal: Signal) -> str:
    """Where a collector listens by default."""
    if protocol is OtlpProtocol.GRPC:
        return "http://localhost:4317"
    return append_signal_path("http://localhost:4318", signal)


def parse_grpc_target(endpoint: str, *, insecure: bool = False) -> tuple[str, bool]:
    """Split an endpoint into gRPC's target and whether to use TLS.

    Args:
        endpoint: "http://HOST:PORT", "https://HOST:PORT" (TLS), "HOST:PORT" or "unix:PATH".
        insecure: what has no scheme is spoken to without TLS; a Unix socket always is.
    """
    advice = "give http://HOST:PORT, https://HOST:PORT, HOST:PORT or unix:PATH"
    if endpoint.startswith("unix:"):
        if endpoint == "unix:":
            raise ValueError(f"it names no socket; {advice}")
        return endpoint, False
    scheme = "" if "://" in endpoint else ("http://" if insecure else "https://")
    url, port = _split(scheme + endpoint, advice)
    if url.path.strip("/") or url.query or url.fragment:
        raise ValueError(f"OTLP over gRPC has nothing but a host and a port; {advice}")
    host = url.hostname or ""
    port = port or _DEFAULT_GRPC_PORT
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}", url.scheme == "https"


def check_http_url(endpoint: str) -> str:
    """Check a URL to which OTLP over HTTP posts, and gives it back."""
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
        raise ValueError("it has a query, after which no path can be appended")
    if path.endswith(f"/v1/{signal}"):
        raise ValueError(f"/v1/{signal} is appended here; give the URL without it")
    return url._replace(path=f"{path}/v1/{signal}").geturl()


def parse_timeout_s(text: str) -> float | None:
    """Read milliseconds, as the specification has it; 0 is no limit."""
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
        raise ValueError(f"scheme {parts.scheme!r}; {advice}")
    if not host or re.search(r"[\s\x00-\x1f]", url):
        raise ValueError(f"it names no host; {advice}")
    if parts.username is not None:
        raise ValueError(f"it names a user, which OTLP's headers are for; {advice}")
    return parts, port
