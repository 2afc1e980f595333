"""Sampling of requests by OpenTelemetry's environment variables and the caller's flags."""

import re

import pytest
from opentelemetry.sdk.trace import sampling as sdk

from whence_server.config.telemetry import read_sampling
from whence_server.domain.errors import ConfigurationError
from whence_server.telemetry.context import read_trace_context
from whence_server.telemetry.sampling import make_sampler

SPAN = "b7ad6b7169203331"
NAME, ARGUMENT = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"


def sampled(environment: dict[str, str], trace_id: str = "f" * 32, flags: str | None = None):
    metadata = [] if flags is None else [("traceparent", f"00-{trace_id}-{SPAN}-{flags}")]
    return read_trace_context(metadata, "s/M", make_sampler(read_sampling(environment))).sampled


@pytest.mark.parametrize(
    ("name", "alone", "below_unsampled", "below_sampled"),
    [
        ("", True, False, True),
        ("always_on", True, True, True),
        ("always_off", False, False, False),
        ("parentbased_always_on", True, False, True),
        ("parentbased_always_off", False, False, True),
        ("PARENTBASED_ALWAYS_OFF", False, False, True),
    ],
)
def test_samplers_without_an_argument_follow_the_specification(
    name, alone, below_unsampled, below_sampled
):
    environment = {NAME: name}
    assert sampled(environment) is alone
    assert sampled(environment, flags="00") is below_unsampled
    assert sampled(environment, flags="01") is below_sampled


@pytest.mark.parametrize(
    ("name", "argument", "low", "high"),
    [
        ("traceidratio", "0.5", True, False),
        ("traceidratio", "0", False, False),
        ("traceidratio", "1.0", True, True),
        ("traceidratio", "", True, True),
        ("parentbased_traceidratio", "0.5", True, True),
    ],
)
def test_ratio_samplers_use_the_trace_id_or_the_parent(name, argument, low, high):
    environment = {NAME: name, ARGUMENT: argument}
    assert sampled(environment, "0" * 31 + "1", "01") is low
    assert sampled(environment, "f" * 32, "01") is high


def test_new_traces_are_sampled_by_the_ratio():
    environment = {NAME: "parentbased_traceidratio", ARGUMENT: "0.25"}
    sampler = make_sampler(read_sampling(environment))
    num_sampled = sum(read_trace_context([], "s/M", sampler).sampled for _ in range(2_000))
    assert 350 < num_sampled < 650  # seven standard deviations
    assert not any(sampled({**environment, ARGUMENT: "0"}) for _ in range(100))


def test_trace_flags_have_the_decision_and_keep_the_callers_other_bits():
    def flags(sampler: sdk.Sampler, text: str) -> int:
        metadata = [("traceparent", f"00-{'f' * 32}-{SPAN}-{text}")]
        return read_trace_context(metadata, "s/M", sampler).trace_flags

    assert flags(sdk.ALWAYS_ON, "00") == 1
    assert flags(sdk.ALWAYS_OFF, "01") == 0
    assert flags(sdk.ALWAYS_OFF, "03") == 2
    assert flags(sdk.DEFAULT_ON, "03") == 3


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({NAME: "sometimes"}, "OTEL_TRACES_SAMPLER is 'sometimes'; it must be one of always_on"),
        ({NAME: "xray"}, "'xray'"),
        ({NAME: "traceidratio", ARGUMENT: "half"}, "'half'; it must be a number from 0 to 1"),
        ({NAME: "traceidratio", ARGUMENT: "1.5"}, "'1.5'"),
        ({NAME: "traceidratio", ARGUMENT: "-0.1"}, "'-0.1'"),
        ({NAME: "parentbased_traceidratio", ARGUMENT: "nan"}, "'nan'"),
        ({NAME: "always_on", ARGUMENT: "0.5"}, "'always_on' takes no argument"),
        ({ARGUMENT: "0.5"}, "'parentbased_always_on' takes no argument"),
    ],
)
def test_an_invalid_sampler_is_an_error_that_names_it(environment, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        make_sampler(read_sampling(environment))


def test_baggage_is_left_alone():
    parent = ("traceparent", f"00-{'f' * 32}-{SPAN}-01")
    context = read_trace_context([parent, ("baggage", "user=secret")], "s/M")
    assert "secret" not in repr(context)
    assert context.sampled
