"""A step's span is put together of bytes: the same that opentelemetry-proto's own messages give."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from telemetry_journal import TRACE_ID, started, step, timestamp

from whence.v1 import step_pb2
from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes
from whence_server.telemetry.otlp.wire import Heads, encode_length_delimited
from whence_server.telemetry.spans.ids import SpanIds
from whence_server.telemetry.spans.origin import Origin, read_origin
from whence_server.telemetry.spans.pieces import Doubles, Integers, serialise_attributes
from whence_server.telemetry.spans.step_attributes import LOWEST_FLOAT32
from whence_server.telemetry.spans.steps import StepSpans, compute_step_interval

IDS = st.integers(0, 2**32 - 1)
FLOATS = st.floats(width=32)
DURATIONS = st.integers(0, 2**40)
INT64 = st.integers(-(2**63), 2**63 - 1)


def arrays(of: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(of, max_size=40)


STEPS = st.builds(
    step_pb2.Step,
    sequence_index=st.integers(0, 3) | IDS,
    index=IDS,
    token_id=st.none() | IDS,
    text=st.text(),
    logprob=st.none() | FLOATS,
    sampling_logprob=st.none() | FLOATS,
    rank=st.none() | IDS,
    entropy=st.none() | FLOATS,
    sampling_entropy=st.none() | FLOATS,
    candidates=st.none()
    | st.builds(
        step_pb2.Candidates,
        token_ids=arrays(IDS),
        logprobs=arrays(FLOATS),
        sampling_logprobs=arrays(FLOATS | st.just(-math.inf)),
    ),
    processors=st.none()
    | st.builds(
        step_pb2.ProcessorEffects,
        num_kept=arrays(IDS),
        removed_mass=arrays(FLOATS),
        token_logprobs=arrays(FLOATS),
    ),
    draw=st.none()
    | st.builds(
        step_pb2.Draw,
        noise=FLOATS,
        runner_up_token_id=st.none() | IDS,
        margin=st.none() | FLOATS,
    ),
    timing=st.none()
    | st.builds(
        step_pb2.StepTiming,
        elapsed_ns=DURATIONS,
        forward_ns=DURATIONS,
        select_ns=DURATIONS,
        batch_size=IDS,
        context_length=IDS,
    ),
)


def plain(origin: Origin, one: step_pb2.Step, *, candidates: bool, text: bool) -> Span:
    """Return the span as a protobuf message, built field by field."""

    def known(message: object, field: str) -> AttributeValue | None:
        return getattr(message, field) if message.HasField(field) else None

    def floats(values: list[float]) -> list[float] | None:
        return [LOWEST_FLOAT32 if n == -math.inf else n for n in values] or None

    tried = one.candidates if candidates else step_pb2.Candidates()
    effects = one.processors
    attributes = {
        "whence.generation.id": origin.generation_id,
        "whence.sequence.index": one.sequence_index,
        "whence.step.index": one.index,
        "whence.step.batch_size": one.timing.batch_size,
        "whence.step.context_length": one.timing.context_length,
        "whence.step.forward_ns": one.timing.forward_ns,
        "whence.step.select_ns": one.timing.select_ns,
        "whence.token.id": known(one, "token_id"),
        "whence.token.rank": known(one, "rank"),
        "whence.draw.runner_up_token_id": known(one.draw, "runner_up_token_id"),
        "whence.token.text": one.text if text else None,
        "whence.candidates.token_ids": list(tried.token_ids) or None,
        "whence.processors.num_kept": list(effects.num_kept) or None,
        "whence.token.logprob": known(one, "logprob"),
        "whence.token.sampling_logprob": known(one, "sampling_logprob"),
        "whence.step.entropy": known(one, "entropy"),
        "whence.step.sampling_entropy": known(one, "sampling_entropy"),
        "whence.draw.noise": one.draw.noise if one.HasField("draw") else None,
        "whence.draw.margin": known(one.draw, "margin"),
        "whence.candidates.logprobs": list(tried.logprobs) or None,
        "whence.candidates.sampling_logprobs": floats(list(tried.sampling_logprobs)),
        "whence.processors.removed_mass": list(effects.removed_mass) or None,
        "whence.processors.token_logprobs": list(effects.token_logprobs) or None,
    }
    start, end = compute_step_interval(origin.start_time_ns, one.index, one.timing)
    return Span(
        trace_id=origin.trace_id,
        span_id=origin.ids.get_decode_step_id(one.sequence_index, one.index),
        trace_state=origin.trace_state,
        parent_span_id=origin.ids.get_decode_id(one.sequence_index),
        flags=origin.trace_flags | 0x100,
        name="decode_step",
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=start,
        end_time_unix_nano=end,
        attributes=encode_attributes(attributes),
    )


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("candidates", [False, True])
@settings(max_examples=40)
@given(
    all_steps=st.lists(STEPS, min_size=1, max_size=4),
    trace_state=st.sampled_from(["", "vendor=x"]),
    flags=st.integers(0, 255),
)
def test_a_step_span_equals_the_serialised_message(candidates, text, all_steps, trace_state, flags):
    """Also those of later steps: whatever is remembered of earlier ones is remembered right."""
    origin = read_origin(started("g", flags=flags, trace_state=trace_state))
    spans = StepSpans(candidates=candidates, text=text)
    for one in all_steps:
        expected = plain(origin, one, candidates=candidates, text=text)
        assert spans.encode(origin, one) == ScopeSpans(spans=[expected]).SerializeToString()


def test_step_spans_of_several_generations_do_not_mix():
    spans = StepSpans()
    # The same id, as in two journals: what is told apart is not the id alone.
    for trace_id in (TRACE_ID, "f" * 32):
        origin = read_origin(started("g", trace_id=trace_id))
        (span,) = ScopeSpans.FromString(spans.encode(origin, step(3))).spans
        assert span.trace_id.hex() == trace_id
        assert span.parent_span_id == SpanIds(bytes.fromhex(trace_id), "g").get_decode_id(0)


def test_an_arrival_before_1970_is_refused_and_not_wrapped_around():
    origin = read_origin(started("g", start_time=timestamp(-5_000_000_000)))
    with pytest.raises(ValueError, match="a span cannot last from -"):
        StepSpans().encode(origin, step(0))


@given(st.lists(st.tuples(INT64, st.text(), st.lists(INT64, min_size=3, max_size=3)), max_size=5))
def test_the_integer_template_serialises_values_of_every_length(all_values):
    made = Integers({"a": 0, "text": "", "b": [0] * 3})
    for number, text, numbers in all_values:
        expected = serialise_attributes({"a": number, "text": text, "b": numbers})
        assert made.encode([number, *numbers], [text]) == expected


@pytest.mark.parametrize(
    ("integers", "texts"), [([1], ["x"]), ([1, 2, 3], ["x"]), ([1, 2], []), ([1, 2], ["x", "y"])]
)
def test_the_integer_template_refuses_another_number_of_values(integers, texts):
    made = Integers({"a": 0, "text": "", "b": [0]})
    assert made.encode([1, 2], ["x"]) == serialise_attributes({"a": 1, "text": "x", "b": [2]})
    with pytest.raises(ValueError, match="for attributes that hold 2 and 1"):
        made.encode(integers, texts)


def test_the_cache_of_field_heads_is_bounded_and_correct():
    heads = Heads(1)
    for num_bytes in range(0, 40_000, 7):
        payload = bytes(num_bytes)
        assert heads[num_bytes] + payload == encode_length_delimited(1, payload)
        assert len(heads) <= 4_096


def test_the_double_template_refuses_another_number_of_values():
    doubles = Doubles(["a"], [("b", 2), ("c", 0)])
    assert doubles.encode([1.5, -0.0, math.inf]) == serialise_attributes(
        {"a": 1.5, "b": [-0.0, math.inf]}
    )
    with pytest.raises(ValueError, match="size 2"):
        doubles.encode([1.5, 2.5])
