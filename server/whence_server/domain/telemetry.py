"""Settings of spans, events and metrics from OpenTelemetry's environment variables.

`config.telemetry` reads them; the telemetry packages apply them.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum

from whence_server.domain.otlp import OtlpSettings


class SamplerKind(StrEnum):
    """The samplers of the OpenTelemetry specification, by their names in OTEL_TRACES_SAMPLER."""

    ALWAYS_ON = "always_on"
    ALWAYS_OFF = "always_off"
    PARENT_BASED_ALWAYS_ON = "parentbased_always_on"
    PARENT_BASED_ALWAYS_OFF = "parentbased_always_off"
    TRACE_ID_RATIO = "traceidratio"
    PARENT_BASED_TRACE_ID_RATIO = "parentbased_traceidratio"

    @property
    def takes_ratio(self) -> bool:
        """True if the sampler uses OTEL_TRACES_SAMPLER_ARG."""
        return self in {SamplerKind.TRACE_ID_RATIO, SamplerKind.PARENT_BASED_TRACE_ID_RATIO}


@dataclass(frozen=True, slots=True)
class Sampling:
    """The sampler of request traces.

    Attributes:
        kind: the default follows the caller's decision, and samples requests without a trace.
        ratio: the share of traces to sample, from 0 to 1, for the kinds that take a ratio.
    """

    kind: SamplerKind = SamplerKind.PARENT_BASED_ALWAYS_ON
    ratio: float = 1.0


class ContentCapture(Enum):
    """Places to which prompts, outputs and tokens' texts are exported."""

    NO_CONTENT = "NO_CONTENT"
    SPAN_ONLY = "SPAN_ONLY"
    EVENT_ONLY = "EVENT_ONLY"
    SPAN_AND_EVENT = "SPAN_AND_EVENT"

    @property
    def on_spans(self) -> bool:
        """True if spans carry content."""
        return self in {ContentCapture.SPAN_ONLY, ContentCapture.SPAN_AND_EVENT}

    @property
    def on_events(self) -> bool:
        """True if events are exported, with content."""
        return self in {ContentCapture.EVENT_ONLY, ContentCapture.SPAN_AND_EVENT}


class StepForm(StrEnum):
    """Form in which traces have a generation's steps."""

    SPANS = "spans"
    EVENTS = "events"
    BOTH = "both"

    @property
    def has_spans(self) -> bool:
        """True if steps are spans of their own."""
        return self is not StepForm.EVENTS

    @property
    def has_events(self) -> bool:
        """True if steps are events of their sequence's `decode` span."""
        return self is not StepForm.SPANS


class TemporalityPreference(StrEnum):
    """Temporality of pushed metrics: totals since the process started, or since the last push.

    The values are those of OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE.
    """

    CUMULATIVE = "cumulative"
    DELTA = "delta"
    LOW_MEMORY = "lowmemory"


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Settings of the metrics push.

    Attributes:
        destination: OTLP destination of metrics.
        interval_s: seconds between two pushes.
        preference: the temporality of counters and histograms.
    """

    destination: OtlpSettings
    interval_s: float = 60.0
    preference: TemporalityPreference = TemporalityPreference.CUMULATIVE
