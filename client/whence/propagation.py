"""The caller's trace goes on in the server, where the program uses OpenTelemetry."""

import sys
from collections.abc import Mapping
from importlib import import_module

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

# Whoever has a current span, or baggage, has this module. It is not imported for a program that
# does without: the client neither needs OpenTelemetry nor waits for it.
_CONTEXT_MODULE = "opentelemetry.context"


def with_trace_context(metadata: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return a call's metadata, with the current span's context (W3C, as the program has it set).

    What the metadata has already stays: a `traceparent` of its own comes with its own
    `tracestate`, or with none.

    Args:
        metadata: what the user sends.
    """
    injected: dict[str, str] = {}
    if _CONTEXT_MODULE in sys.modules:
        import_module("opentelemetry.propagate").inject(injected)
    # gRPC's keys are in lower case, and so are W3C's; other propagators' may not be.
    injected = {key.lower(): value for key, value in injected.items()}
    if TRACEPARENT in metadata:
        injected.pop(TRACESTATE, None)
    return tuple({**injected, **metadata}.items())
