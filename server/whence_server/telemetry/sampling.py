"""The sampler that OpenTelemetry's environment variables ask for."""

import math
from collections.abc import Mapping
from typing import Final

from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)

from whence_server.domain.errors import ConfigurationError

SAMPLER_VARIABLE: Final = "OTEL_TRACES_SAMPLER"
ARGUMENT_VARIABLE: Final = "OTEL_TRACES_SAMPLER_ARG"
DEFAULT_SAMPLER: Final = "parentbased_always_on"

_WITHOUT_ARGUMENT: Mapping[str, Sampler] = {
    "always_on": ALWAYS_ON,
    "always_off": ALWAYS_OFF,
    "parentbased_always_on": DEFAULT_ON,
    "parentbased_always_off": DEFAULT_OFF,
}
_RATIO, _PARENT_BASED_RATIO = "traceidratio", "parentbased_traceidratio"


def sampler_from(environment: Mapping[str, str]) -> Sampler:
    """Gives the sampler that OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG name.

    Without the first, requests are sampled as their callers say, and those of no trace always.

    Raises:
        ConfigurationError: there is no such sampler here, or its argument is not one.
    """
    name = environment.get(SAMPLER_VARIABLE, "").strip().lower()
    argument = environment.get(ARGUMENT_VARIABLE, "").strip()
    if name in {_RATIO, _PARENT_BASED_RATIO}:
        sampler = TraceIdRatioBased(_ratio(argument))
        return ParentBased(sampler) if name == _PARENT_BASED_RATIO else sampler
    found = _WITHOUT_ARGUMENT.get(name or DEFAULT_SAMPLER)
    if found is None:
        known = ", ".join((*_WITHOUT_ARGUMENT, _RATIO, _PARENT_BASED_RATIO))
        raise ConfigurationError(f"{SAMPLER_VARIABLE} is {name!r}; it must be one of {known}")
    if argument:
        raise ConfigurationError(
            f"{ARGUMENT_VARIABLE} is {argument!r}, but {SAMPLER_VARIABLE} "
            f"{name or DEFAULT_SAMPLER!r} takes no argument: unset it, or choose {_RATIO} or "
            f"{_PARENT_BASED_RATIO}"
        )
    return found


def _ratio(text: str) -> float:
    """Reads the share of traces to sample; all of them where nothing is said."""
    if not text:
        return 1.0
    try:
        ratio = float(text)
    except ValueError:
        ratio = math.nan
    if not 0.0 <= ratio <= 1.0:  # NaN is not, either
        raise ConfigurationError(
            f"{ARGUMENT_VARIABLE} is {text!r}; it must be a number from 0 to 1"
        )
    return ratio
