"""A step's internals on its span, against opentelemetry-proto's own encoding of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from span_reading import attributes, named, spans_of
from telemetry_journal import MemoryJournal, finished, started, step

from whence.v1.step_pb2 import Candidates, Internals, Step
from whence_server.domain.entries import EntryKind
from whence_server.telemetry.otlp.attributes import encode_attributes
from whence_server.telemetry.spans.float32 import shorten_all
from whence_server.telemetry.spans.internals import encode_internals

SHARES = st.lists(st.floats(0, 1, width=32), max_size=40)
IDS = st.lists(st.integers(0, 2**32 - 1), max_size=20)


def full_internals(**fields: object) -> Internals:
    return Internals(
        **{
            "source_positions": [7, 300, 0],
            "source_shares": [0.5, 0.25, 0.125],
            "self_share": 0.0625,
            "sink_share": 0.03125,
            "layer_shares": [0.25, 0.75],
            "layer_leaders": [1, 2],
            **fields,
        }
    )


def decided(internals: Internals) -> MemoryJournal:
    journal = MemoryJournal()
    method = {"source_method": "by-hand/1", "unavailable": {"layers": "why", "a": "b"}}
    journal.append("g", EntryKind.STARTED, started("g", **method))
    candidates = Candidates(token_ids=[5, 6], logprobs=[-1, -2], sampling_logprobs=[-1, -2])
    made = step(0, candidates=candidates, internals=internals)
    journal.append("g", EntryKind.STEP, made)
    journal.append("g", EntryKind.STEP, step(1))
    journal.append("g", EntryKind.FINISHED, finished(2))
    return journal


def internals_of(span: Span) -> dict[str, object]:
    prefixes = ("whence.source.", "whence.layer.", "whence.unavailable.")
    return {key: value for key, value in attributes(span).items() if key.startswith(prefixes)}


async def test_a_step_carries_its_sources_and_layers_without_text():
    with_it, without = named(await spans_of(decided(full_internals())), "decode_step")
    assert internals_of(with_it) == {
        "whence.source.positions": [7, 300, 0],
        "whence.source.shares": [0.5, 0.25, 0.125],
        "whence.source.self_share": 0.0625,
        "whence.source.sink_share": 0.03125,
        "whence.layer.shares": [0.25, 0.75],
        "whence.layer.leader_token_ids": [6, 1000],  # the second is the chosen token itself
    }
    assert internals_of(without) == {}
    assert not [value for value in internals_of(with_it).values() if isinstance(value, str)]


async def test_internals_do_not_change_the_rest_of_the_span():
    with_it, _ = named(await spans_of(decided(full_internals())), "decode_step")
    bare, _ = named(await spans_of(decided(Internals())), "decode_step")
    kept = [pair for pair in with_it.attributes if pair.key not in internals_of(with_it)]
    del with_it.attributes[:]
    with_it.attributes.extend(kept)
    assert with_it == bare


async def test_source_method_and_unavailable_parts_are_on_the_genai_span():
    (generation,) = named(await spans_of(decided(full_internals())), "text_completion demo")
    assert internals_of(generation) == {
        "whence.source.method": "by-hand/1",
        "whence.unavailable.a": "b",
        "whence.unavailable.layers": "why",
    }


@pytest.mark.parametrize(
    ("internals", "absent"),
    [
        (Internals(layer_shares=[0.5], layer_leaders=[0]), "whence.source."),
        (Internals(source_positions=[1], source_shares=[0.5], self_share=0.5), "whence.layer."),
    ],
)
async def test_an_absent_part_makes_no_attributes(internals, absent):
    span, _ = named(await spans_of(decided(internals)), "decode_step")
    found = internals_of(span)
    assert found
    assert not [key for key in found if key.startswith(absent)]


def test_without_token_ids_there_are_no_leaders():
    made = Step(internals=full_internals())
    assert "whence.layer.leader_token_ids" not in read(made)
    assert read(made)["whence.layer.shares"] == [0.25, 0.75]


@given(positions=IDS, shares=SHARES, layers=SHARES, ids=st.lists(st.integers(0, 2**32 - 1)))
def test_internals_are_serialised_as_protobuf_does(positions, shares, layers, ids):
    leaders = [place % (len(ids) + 1) for place in range(len(layers))]
    made = Step(
        token_id=2**32 - 1,
        candidates=Candidates(token_ids=ids),
        internals=Internals(
            source_positions=positions,
            source_shares=shares,
            self_share=0.5,
            sink_share=0.25,
            layer_shares=layers,
            layer_leaders=leaders,
        ),
    )
    expected = {
        "whence.source.positions": positions or None,
        "whence.source.shares": [float(str(np.float32(share))) for share in shares] or None,
        "whence.layer.shares": [float(str(np.float32(share))) for share in layers] or None,
        "whence.layer.leader_token_ids": [[*ids, 2**32 - 1][place] for place in leaders]
        if ids and leaders
        else None,
        "whence.source.self_share": 0.5,
        "whence.source.sink_share": 0.25,
    }
    as_messages = Span(attributes=encode_attributes(expected))
    assert encode_internals(made, shorten_all) == as_messages.SerializeToString()


def read(made: Step) -> dict[str, object]:
    return attributes(Span.FromString(encode_internals(made, shorten_all)))
