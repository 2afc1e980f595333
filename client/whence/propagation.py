"""Metadata of calls: the current OpenTelemetry span, and the token of the caller."""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TypeAlias

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

# A program with a current span or baggage has imported this module. The client does not import it
# itself: it does not need OpenTelemetry.
_CONTEXT_MODULE = "opentelemetry.context"


AUTHORIZATION = "authorization"

Metadata: TypeAlias = tuple[tuple[str, str], ...]


def add_token(metadata: Metadata, token: str) -> Metadata:
    """Return a call's metadata with the caller's token, unless the user gave an authorization."""
    if not token or any(key == AUTHORIZATION for key, _ in metadata):
        return metadata
    return (*metadata, (AUTHORIZATION, f"Bearer {token}"))


def add_trace_context(metadata: Mapping[str, str]) -> Metadata:
    """Return a call's metadata with the current span's context (W3C, by the set propagators).

    The context's baggage is left out: the server ignores it, and baggage of the size that W3C
    allows does not fit into the headers that servers and proxies accept. Keys of the given metadata
    take precedence: with its own `traceparent`, no other `tracestate` is added.

    Args:
        metadata: the user's metadata.
    """
    injected: dict[str, str] = {}
    if _CONTEXT_MODULE in sys.modules:
        import_module("opentelemetry.propagate").inject(injected)
    # gRPC requires keys in lower case.
    injected = {
        key.lower(): value
        for key, value in injected.items()
        if key.lower() in {TRACEPARENT, TRACESTATE}
    }
    if TRACEPARENT in metadata:
        injected.pop(TRACESTATE, None)
    return tuple({**injected, **metadata}.items())
