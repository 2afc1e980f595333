"""Address of the server, and options of the connection."""

import os
import re

from whence.loopback import is_local

DEFAULT_TARGET = "127.0.0.1:50051"
TARGET_VARIABLE = "WHENCE_TARGET"
MAX_METADATA_BYTES = 64 << 10
"""Maximum size of the headers or trailers that a call receives; a mesh may add its own."""

_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:", "xds:")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):\d{1,5}")
_TLS_SCHEMES = ("https://", "grpcs://")

_OPTIONS = (
    # A peer that is silently gone is noticed after the sum of both, 14 s: long before the 60 s
    # for which a generation goes on without a reader. The server allows pings every 5 s. The
    # answer to a ping is awaited for `ping_timeout_ms`; `keepalive_timeout_ms` does not bound it.
    ("grpc.keepalive_time_ms", 9_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # A long prefill sends nothing for longer than gRPC's default of two pings.
    ("grpc.http2.max_pings_without_data", 0),
    # Lagging readers get large batches of steps.
    ("grpc.max_receive_message_length", 64 * 2**20),
    # A server that restarts should be found again in seconds, not in gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Channels with equal options share a connection by default, and its limit of calls.
    ("grpc.use_local_subchannel_pool", 1),
    # Between two different limits gRPC refuses headers at random.
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
)


def resolve_target(target: str | None) -> str:
    """Return the server's address: the given one, else $WHENCE_TARGET, else 127.0.0.1:50051.

    "https://" or "grpcs://" before HOST:PORT asks for TLS, and stays in the result.

    Raises:
        ValueError: the address has neither a port nor one of gRPC's schemes.
    """
    chosen = target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
    if _is_text(chosen) and (
        chosen.startswith(_SCHEMES) or _HOST_AND_PORT.fullmatch(split_tls_scheme(chosen)[0])
    ):
        return chosen
    raise ValueError(
        f"target {chosen!r} is not an address: write HOST:PORT, as in {DEFAULT_TARGET!r}, "
        "https://HOST:PORT for TLS, or unix:PATH"
    )


def split_tls_scheme(target: str) -> tuple[str, bool]:
    """Return a target without the scheme that asks for TLS, and whether it had one."""
    for scheme in _TLS_SCHEMES:
        if target.startswith(scheme):
            return target.removeprefix(scheme).removesuffix("/"), True
    return target, False


def _is_text(target: str) -> bool:
    """Return whether the target is UTF-8; Python decodes other bytes as lone surrogates."""
    try:
        target.encode()
    except UnicodeEncodeError:
        return False
    return True


def make_channel_options(target: str) -> list[tuple[str, int]]:
    """Return gRPC's channel options for a target."""
    options = list(_OPTIONS)
    if is_local(target):
        # An HTTP proxy from the environment cannot reach this machine's loopback.
        options.append(("grpc.enable_http_proxy", 0))
    return options
