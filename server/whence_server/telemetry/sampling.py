"""Sampler of request traces, made from the settings."""

from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)

from whence_server.domain.telemetry import SamplerKind, Sampling


def make_sampler(sampling: Sampling) -> Sampler:
    """Return the OpenTelemetry SDK's sampler for these settings."""
    match sampling.kind:
        case SamplerKind.ALWAYS_ON:
            return ALWAYS_ON
        case SamplerKind.ALWAYS_OFF:
            return ALWAYS_OFF
        case SamplerKind.PARENT_BASED_ALWAYS_ON:
            return DEFAULT_ON
        case SamplerKind.PARENT_BASED_ALWAYS_OFF:
            return DEFAULT_OFF
        case SamplerKind.TRACE_ID_RATIO:
            return TraceIdRatioBased(sampling.ratio)
        case SamplerKind.PARENT_BASED_TRACE_ID_RATIO:
            return ParentBased(TraceIdRatioBased(sampling.ratio))
