"""A step's span is put together of bytes: the same that opentelemetry-proto's own messages give."""

import math

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from span_reading import attributes
from telemetry_journal import TRACE_ID, started, step, timestamp

from whence.summary import make_text_names, name_by_id, summarise_step
from whence.v1 import step_pb2
from whence_server.domain.entries import Entry, EntryKind
from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes
from whence_server.telemetry.otlp.wire import Heads, encode_length_delimited
from whence_server.telemetry.spans import pieces
from whence_server.telemetry.spans.ahead import StepsAhead
from whence_server.telemetry.spans.float32 import LOWEST_FLOAT32, shorten_all
from whence_server.telemetry.spans.ids import SpanIds
from whence_server.telemetry.spans.origin import Origin, read_origin
from whence_server.telemetry.spans.pieces import (
    Doubles,
    Integers,
    TextHeads,
    serialise_attributes,
)
from whence_server.telemetry.spans.steps import StepSpans, compute_step_interval
from whence_server.telemetry.spans.token_names import TokenWords

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


def shortest(number: float) -> float:
    """Return a float32 in the digits that numpy prints, an oracle of the shortest ones."""
    if not math.isfinite(number):
        return LOWEST_FLOAT32 if number == -math.inf else number
    return float(str(np.float32(number)))


def entries_of(all_steps: list[step_pb2.Step]) -> list[Entry]:
    return [
        Entry(7 + i, "g", 2 + i, EntryKind.STEP, one.SerializeToString())
        for i, one in enumerate(all_steps)
    ]


def encode_all(
    spans: StepSpans, origin: Origin, all_steps: list[step_pb2.Step], *, candidates: bool = True
) -> list[bytes]:
    ahead = StepsAhead(shorten_all, {"g": origin}, candidates=candidates)
    entries = entries_of(all_steps)
    ahead.expect(entries)
    return [spans.encode(origin, ahead.read(entry)) for entry in entries]


def plain(
    origin: Origin, one: step_pb2.Step, *, candidates: bool, text: bool, summary: bool
) -> Span:
    """Return the span as a protobuf message, built field by field."""

    def known(message: object, field: str) -> AttributeValue | None:
        if not message.HasField(field):
            return None
        value = getattr(message, field)
        return shortest(value) if isinstance(value, float) else value

    def floats(values: list[float]) -> list[float] | None:
        return [shortest(n) for n in values] or None

    tried = one.candidates if candidates else step_pb2.Candidates()
    effects, timing = one.processors, one.timing
    is_own = timing.batch_size > 0  # nothing is known of an upstream's batches
    attributes = {
        "whence.generation.id": origin.generation_id,
        "whence.sequence.index": one.sequence_index,
        "whence.step.summary": summarise_step(one, name_by_id, "sample") if summary else None,
        "whence.token.unlikely": one.logprob < math.log(0.01) or None,
        "whence.token.text": one.text if text else None,
        "whence.step.index": one.index,
        "whence.step.batch_size": timing.batch_size if is_own else None,
        "whence.step.context_length": timing.context_length if is_own else None,
        "whence.step.forward_ns": timing.forward_ns if is_own else None,
        "whence.step.select_ns": timing.select_ns if is_own else None,
        "whence.token.id": known(one, "token_id"),
        "whence.token.rank": known(one, "rank"),
        "whence.draw.runner_up_token_id": known(one.draw, "runner_up_token_id"),
        "whence.candidates.token_ids": list(tried.token_ids) or None,
        "whence.processors.num_kept": list(effects.num_kept) or None,
        "whence.token.logprob": known(one, "logprob"),
        "whence.token.sampling_logprob": known(one, "sampling_logprob"),
        "whence.step.entropy": known(one, "entropy"),
        "whence.step.sampling_entropy": known(one, "sampling_entropy"),
        "whence.draw.noise": shortest(one.draw.noise) if one.HasField("draw") else None,
        "whence.draw.margin": known(one.draw, "margin"),
        "whence.candidates.logprobs": floats(list(tried.logprobs)),
        "whence.candidates.sampling_logprobs": floats(list(tried.sampling_logprobs)),
        "whence.processors.removed_mass": floats(list(effects.removed_mass)),
        "whence.processors.token_logprobs": floats(list(effects.token_logprobs)),
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
@pytest.mark.parametrize("summary", [False, True])
@settings(max_examples=40)
@given(
    all_steps=st.lists(STEPS, min_size=1, max_size=4),
    trace_state=st.sampled_from(["", "vendor=x"]),
    flags=st.integers(0, 255),
)
def test_a_step_span_equals_the_serialised_message(
    candidates, text, summary, all_steps, trace_state, flags
):
    """Also those of later steps: whatever is remembered of earlier ones is remembered right."""
    origin = read_origin(started("g", flags=flags, trace_state=trace_state))
    spans = StepSpans(shorten_all, candidates=candidates, text=text, summary=summary)
    all_encoded = encode_all(spans, origin, all_steps, candidates=candidates)
    for one, encoded in zip(all_steps, all_encoded, strict=True):
        expected = plain(origin, one, candidates=candidates, text=text, summary=summary)
        assert encoded == ScopeSpans(spans=[expected]).SerializeToString()


@given(st.lists(FLOATS, max_size=60))
def test_floats_are_shortened_as_numpy_prints_them(values):
    for value, short in zip(values, shorten_all(values), strict=True):
        assert short == shortest(value) or math.isnan(short)
        if math.isfinite(value):
            assert np.float32(short).tobytes() == np.float32(value).tobytes()


def test_steps_are_the_same_whether_they_are_read_ahead_or_not():
    """A step that cannot be parsed is reported in its turn, and not before."""
    entries = entries_of([step(i, logprob=-i / 3) for i in range(200)])
    entries[90] = entries[90]._replace(payload=b"\xff")
    entries[100] = entries[100]._replace(kind=EntryKind.BEAM_ROUND)
    origins = {"g": read_origin(started("g"))}
    ahead, alone = (StepsAhead(shorten_all, origins) for _ in range(2))
    ahead.expect(entries)
    for entry in entries:
        if entry.kind is EntryKind.BEAM_ROUND:
            continue
        if entry.payload == b"\xff":
            for reader in (ahead, alone):
                with pytest.raises(DecodeError):
                    reader.read(entry)
            continue
        assert ahead.read(entry) == alone.read(entry)
    assert not ahead._ready


@pytest.mark.parametrize("origins", [{}, {"g": None}, {"g": read_origin(started("g", flags=0))}])
def test_steps_that_get_no_span_are_not_read_ahead(origins):
    ahead = StepsAhead(shorten_all, origins)
    entries = entries_of([step(i) for i in range(3)])
    ahead.expect(entries)
    assert ahead.read(entries[0])[0] == step(0)
    assert not ahead._ready


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (name_by_id, "decode_step 1003"),
        (make_text_names(lambda _: " special"), 'decode_step " special"'),
        (make_text_names(lambda _: 'a"\n\u202e'), 'decode_step "a\\"\\n\\u202e"'),
        (make_text_names(lambda _: "x" * 99), f'decode_step "{"x" * 29}…"'),
        (make_text_names(lambda _: ""), "decode_step 1003"),
    ],
)
def test_a_step_span_may_be_named_after_its_token(names, name):
    spans = StepSpans(shorten_all, token_names=True)
    origin = read_origin(started("g"), TokenWords(names))
    named, unnamed = encode_all(spans, origin, [step(3), step(4, token_id=None)])
    assert ScopeSpans.FromString(named).spans[0].name == name
    assert ScopeSpans.FromString(unnamed).spans[0].name == "decode_step"
    plain_names = encode_all(StepSpans(shorten_all), origin, [step(3)])
    assert ScopeSpans.FromString(plain_names[0]).spans[0].name == "decode_step"


@pytest.mark.parametrize(
    ("probability", "unlikely_below", "flag"),
    [
        (0.0099, 0.01, True),
        (0.0101, 0.01, None),
        (0.3, 0.5, True),
        (1e-30, 0, None),
        (0.9, 1, True),
    ],
)
def test_an_unlikely_token_is_flagged(probability, unlikely_below, flag):
    spans = StepSpans(shorten_all, unlikely_below=unlikely_below)
    one = step(0, logprob=math.log(probability))
    (encoded,) = encode_all(spans, read_origin(started("g")), [one])
    found = attributes(ScopeSpans.FromString(encoded).spans[0])
    assert found.get("whence.token.unlikely") is flag


def test_step_spans_of_several_generations_do_not_mix():
    spans = StepSpans(shorten_all)
    # The same id, as in two journals: what is told apart is not the id alone.
    for trace_id in (TRACE_ID, "f" * 32):
        origin = read_origin(started("g", trace_id=trace_id))
        (span,) = ScopeSpans.FromString(encode_all(spans, origin, [step(3)])[0]).spans
        assert span.trace_id.hex() == trace_id
        assert span.parent_span_id == SpanIds(bytes.fromhex(trace_id), "g").get_decode_id(0)


def test_an_arrival_before_1970_is_refused_and_not_wrapped_around():
    origin = read_origin(started("g", start_time=timestamp(-5_000_000_000)))
    with pytest.raises(ValueError, match="a span cannot last from -"):
        encode_all(StepSpans(shorten_all), origin, [step(0)])


@given(st.lists(st.tuples(INT64, INT64, INT64), max_size=5))
def test_the_integer_template_serialises_values_of_every_length(all_values):
    made = Integers({"a": 0, "b": [0, 0]})
    for number, *others in all_values:
        expected = serialise_attributes({"a": number, "b": others})
        assert made.encode([number, *others]) == expected


def test_caches_of_pieces_are_bounded(monkeypatch):
    monkeypatch.setattr(pieces, "_MAX_HEADS", 4)
    heads = TextHeads("key")
    for number in range(12):
        text = "ä" * number
        raw = text.encode()
        assert heads[len(raw)] + raw == serialise_attributes({"key": text})
        assert len(heads) <= 4


@pytest.mark.parametrize("integers", [[], [1], [1, 2, 3]])
def test_the_integer_template_refuses_another_number_of_values(integers):
    made = Integers({"a": 0, "b": 0})
    assert made.encode([1, 2]) == serialise_attributes({"a": 1, "b": 2})
    with pytest.raises(ValueError, match="for attributes that hold 2"):
        made.encode(integers)


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
