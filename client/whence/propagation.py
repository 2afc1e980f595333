"""Propagation of the current OpenTelemetry span to the server."""

import sys
from collections.abc import Mapping
from importlib import import_module

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

# A program with a current span or baggage has imported this module. The client does not import it
# itself: it does not need OpenTelemetry.
_CONTEXT_MODULE = "opentelemetry.context"


def add_trace_context(metadata: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return a call's metadata with the current span's context (W3C, by the set propagators).

    Keys of the given metadata take precedence: with its own `traceparent`, no other `tracestate`
    is added.

    Args:
        metadata: the user's metadata.
    """
    injected: dict[str, str] = {}
    if _CONTEXT_MODULE in sys.modules:
        import_module("opentelemetry.propagate").inject(injected)
    # gRPC requires keys in lower case; those of propagators other than W3C's may not be.
    injected = {key.lower(): value for key, value in injected.items()}
    if TRACEPARENT in metadata:
        injected.pop(TRACESTATE, None)
    return tuple({**injected, **metadata}.items())
