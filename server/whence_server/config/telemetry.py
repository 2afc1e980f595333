"""Settings of sampling, content capture and metrics push, from OpenTelemetry's variables."""

import logging
import math
import re
from collections.abc import Mapping
from typing import Final

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpSettings
from whence_server.domain.otlp_text import parse_resource_attributes
from whence_server.domain.telemetry import (
    ContentCapture,
    PushOptions,
    SamplerKind,
    Sampling,
    TemporalityPreference,
)

_log = logging.getLogger(__name__)

SAMPLER_VARIABLE: Final = "OTEL_TRACES_SAMPLER"
ARGUMENT_VARIABLE: Final = "OTEL_TRACES_SAMPLER_ARG"
CAPTURE_VARIABLE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_OLD_CAPTURE = "true"
_ATTRIBUTES, _SERVICE_NAME = "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SERVICE_NAME"
_INTERVAL = "OTEL_METRIC_EXPORT_INTERVAL"
_PREFERENCE = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


def read_sampling(environment: Mapping[str, str]) -> Sampling:
    """Read OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG.

    Raises:
        ConfigurationError: the sampler is unknown, or its argument is malformed.
    """
    name = environment.get(SAMPLER_VARIABLE, "").strip().lower()
    argument = environment.get(ARGUMENT_VARIABLE, "").strip()
    try:
        kind = SamplerKind(name) if name else Sampling().kind
    except ValueError:
        known = ", ".join(SamplerKind)
        raise ConfigurationError(
            f"{SAMPLER_VARIABLE} is {name!r}; it must be one of {known}"
        ) from None
    if kind.takes_ratio:
        return Sampling(kind, _parse_ratio(argument))
    if argument:
        with_ratio = " or ".join(one for one in SamplerKind if one.takes_ratio)
        raise ConfigurationError(
            f"{ARGUMENT_VARIABLE} is {argument!r}, but {SAMPLER_VARIABLE} {kind.value!r} takes no "
            f"argument: unset it, or choose {with_ratio}"
        )
    return Sampling(kind)


def read_content_capture(environment: Mapping[str, str]) -> ContentCapture:
    """Read OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT; unset means NO_CONTENT.

    "true" and "false" are the values from before the variable had four. "false" means NO_CONTENT.
    "true" means SPAN_ONLY: other instrumentations of the same pod still take it.

    Raises:
        ConfigurationError: the variable has another value.
    """
    text = environment.get(CAPTURE_VARIABLE, "").strip()
    if not text or text.lower() == "false":
        return ContentCapture.NO_CONTENT
    if text.lower() == _OLD_CAPTURE:
        return ContentCapture.SPAN_ONLY
    try:
        return ContentCapture(text.upper())
    except ValueError:
        known = ", ".join(one.value for one in ContentCapture)
        raise ConfigurationError(
            f"{CAPTURE_VARIABLE} is {text!r}; it must be one of {known}"
        ) from None


def warn_of_old_capture(environment: Mapping[str, str]) -> None:
    """Log a warning if the variable of content capture has its old value "true"."""
    text = environment.get(CAPTURE_VARIABLE, "").strip()
    if text.lower() == _OLD_CAPTURE:
        _log.warning(
            "%s is %r, an old value, and means %s; the values now are %s",
            CAPTURE_VARIABLE,
            text,
            ContentCapture.SPAN_ONLY.value,
            ", ".join(one.value for one in ContentCapture),
        )


def read_push_options(
    destination: OtlpSettings | None, environment: Mapping[str, str]
) -> PushOptions | None:
    """Read the standard variables for metrics only; an empty variable counts as unset.

    Args:
        destination: destination of metrics; with None the variables are only checked, and None
            is returned.
        environment: the environment variables.

    Raises:
        ConfigurationError: a variable is malformed; the message names it.
    """
    interval_s = _parse_interval_s(environment.get(_INTERVAL, "").strip() or "60000")
    preference = _parse_preference(environment.get(_PREFERENCE, "").strip().lower() or "cumulative")
    return None if destination is None else PushOptions(destination, interval_s, preference)


def read_resource(environment: Mapping[str, str]) -> dict[str, str]:
    """Read OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME; an empty one counts as unset.

    Returns:
        The resource's attributes by name; OTEL_SERVICE_NAME wins over a service.name in the list.

    Raises:
        ConfigurationError: OTEL_RESOURCE_ATTRIBUTES is malformed.
    """
    try:
        attributes = dict(parse_resource_attributes(environment.get(_ATTRIBUTES, "")))
    except ValueError as error:
        raise ConfigurationError(f"{_ATTRIBUTES}: {error}") from None
    if name := environment.get(_SERVICE_NAME, "").strip():
        attributes["service.name"] = name
    return attributes


def _parse_ratio(text: str) -> float:
    if not text:
        return 1.0
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 0.0 <= ratio <= 1.0:  # false for NaN, too
        raise ConfigurationError(
            f"{ARGUMENT_VARIABLE} is {text!r}; it must be a number from 0 to 1"
        )
    return ratio


def _parse_preference(text: str) -> TemporalityPreference:
    try:
        return TemporalityPreference(text)
    except ValueError:
        known = ", ".join(TemporalityPreference)
        raise ConfigurationError(f"{_PREFERENCE} {text!r}: expected one of {known}") from None


def _parse_interval_s(text: str) -> float:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) == 0:
        raise ConfigurationError(f"{_INTERVAL} {text!r}: expected whole milliseconds above 0")
    return int(text) / 1e3
