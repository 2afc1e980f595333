"""Where the server is, and how the connection to it behaves."""

import os
import re

DEFAULT_TARGET = "127.0.0.1:50051"
TARGET_VARIABLE = "WHENCE_TARGET"

_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:", "xds:")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):\d{1,5}")
_LOCAL = re.compile(r"unix|vsock|localhost:|127\.|\[::1\]:|ipv4:127\.|ipv6:%?\[::1\]")

_OPTIONS = (
    # Finds out that a peer is gone without a word; the server allows pings every 10 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A long prefill sends nothing for longer than gRPC's default of two pings.
    ("grpc.http2.max_pings_without_data", 0),
    # A lagging reader gets large batches of steps.
    ("grpc.max_receive_message_length", 64 * 2**20),
    # A server that restarts should be found again in seconds, not in gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


def resolve_target(target: str | None) -> str:
    """The server's address: as given, or $WHENCE_TARGET, or 127.0.0.1:50051.

    Raises:
        ValueError: the address has neither a port nor one of gRPC's schemes.
    """
    chosen = target or os.environ.get(TARGET_VARIABLE) or DEFAULT_TARGET
    if _is_text(chosen) and (chosen.startswith(_SCHEMES) or _HOST_AND_PORT.fullmatch(chosen)):
        return chosen
    raise ValueError(
        f"target {chosen!r} is not an address: write HOST:PORT, as in {DEFAULT_TARGET!r}, "
        "or unix:PATH"
    )


def _is_text(target: str) -> bool:
    """Return whether it is UTF-8: other bytes are lone surrogates in Python's environment."""
    try:
        target.encode()
    except UnicodeEncodeError:
        return False
    return True


def channel_options(target: str) -> list[tuple[str, int]]:
    """The options of gRPC for a channel to this target."""
    options = list(_OPTIONS)
    if _LOCAL.match(target):
        # An HTTP proxy of the environment cannot reach this machine's own loopback.
        options.append(("grpc.enable_http_proxy", 0))
    return options
