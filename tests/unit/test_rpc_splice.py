"""Spliced envelopes parse into the messages that the generated classes make."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.v1 import generation_pb2, step_pb2, trace_pb2
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.varint import encode_varint
from whence_server.rpc.splice import (
    build_events,
    build_list_steps_response,
    build_responses,
    build_watch_position,
    build_watch_response,
)


def step(index: int, text: str = "x") -> bytes:
    return step_pb2.Step(index=index, text=text, token_id=index).SerializeToString()


def entries_of(kinds: list[EntryKind]) -> list[Entry]:
    payloads = {
        EntryKind.STARTED: generation_pb2.GenerationStarted(generation_id="g").SerializeToString(),
        EntryKind.PROMPT_STEP: step(1, "prompt"),
        EntryKind.STEP: step(7, "ü" * 100),
        EntryKind.BEAM_ROUND: generation_pb2.BeamRound(index=3).SerializeToString(),
        EntryKind.FINISHED: generation_pb2.GenerationFinished(queue_ns=5).SerializeToString(),
    }
    return [Entry(i + 50, "g", i + 1, kind, payloads[kind]) for i, kind in enumerate(kinds)]


streamed = st.sampled_from(
    [
        EntryKind.STARTED,
        EntryKind.PROMPT_STEP,
        EntryKind.STEP,
        EntryKind.BEAM_ROUND,
        EntryKind.FINISHED,
    ]
)


def payloads_of(event: generation_pb2.GenerationEvent) -> list[bytes]:
    name = event.WhichOneof("event")
    content = getattr(event, name)
    if name in ("steps", "prompt_steps"):
        return [s.SerializeToString() for s in content.steps]
    return [content.SerializeToString()]


@given(st.lists(streamed, max_size=30))
def test_responses_hold_every_entry_once_and_in_order(kinds: list[EntryKind]) -> None:
    entries = entries_of(kinds)
    seen = []
    offset = 0
    for raw in build_responses(entries):
        event = generation_pb2.GenerateResponse.FromString(raw).event
        assert event == generation_pb2.ResumeGenerationResponse.FromString(raw).event
        assert event.first_offset == offset + 1
        offset = event.last_offset
        payloads = payloads_of(event)
        assert len(payloads) == event.last_offset - event.first_offset + 1
        seen += payloads
    assert seen == [entry.payload for entry in entries]


def test_spliced_bytes_equal_the_generated_classes_serialisation() -> None:
    (raw,) = build_responses(entries_of([EntryKind.STEP] * 3))
    steps = [step_pb2.Step.FromString(step(7, "ü" * 100))] * 3
    whole = generation_pb2.GenerateResponse(
        event=generation_pb2.GenerationEvent(
            first_offset=1, last_offset=3, steps=generation_pb2.StepBatch(steps=steps)
        )
    )
    assert raw == whole.SerializeToString()


@pytest.mark.parametrize(("after_offset", "num_unrecorded"), [(0, 0), (2, 0), (3, 1), (61, 59)])
def test_finished_says_how_many_offsets_of_its_reader_are_not_on_record(
    after_offset: int, num_unrecorded: int
) -> None:
    *_, end = entries_of([EntryKind.STARTED, EntryKind.STEP, EntryKind.FINISHED])
    (raw,) = build_responses([end], after_offset)
    (plain,) = build_responses([end])
    response = generation_pb2.ResumeGenerationResponse.FromString(raw)
    assert response.num_unrecorded_offsets == num_unrecorded
    assert response.event == generation_pb2.ResumeGenerationResponse.FromString(plain).event
    assert (raw == plain) == (num_unrecorded == 0)


def test_entries_that_lack_content_say_by_which_policy() -> None:
    entries = entries_of([EntryKind.STEP, EntryKind.FINISHED])
    none = generation_pb2.CONTENT_POLICY_NONE
    for raw in build_responses(entries, after_offset=3, content=none):
        response = generation_pb2.ResumeGenerationResponse.FromString(raw)
        assert response.content == none
        assert response.SerializeToString(deterministic=True) == raw
    for raw in build_responses(entries):
        assert not generation_pb2.ResumeGenerationResponse.FromString(raw).content


def test_watch_responses_carry_id_and_position() -> None:
    (event,) = build_events(entries_of([EntryKind.FINISHED]))
    raw = build_watch_response(event, "some-position")
    response = trace_pb2.WatchGenerationsResponse.FromString(raw)
    assert (response.generation_id, response.position) == ("g", "some-position")
    assert response.event.finished.queue_ns == 5


def test_watch_position_stands_alone() -> None:
    alone = trace_pb2.WatchGenerationsResponse(position="some-position")
    assert build_watch_position("some-position") == alone.SerializeToString()


@given(st.integers(0, 2**64 - 1))
def test_varints_equal_protobufs_encoding(value: int) -> None:
    event = generation_pb2.GenerationEvent(first_offset=value).SerializeToString()
    assert event == (b"\x08" + encode_varint(value) if value else b"")


@given(st.lists(st.text(max_size=300), max_size=20), st.sampled_from(["", "after:7"]))
def test_list_steps_response_parses_into_its_steps_and_token(texts: list[str], token: str) -> None:
    payloads = [step(index, text) for index, text in enumerate(texts)]
    entries = [Entry(i, "g", i, EntryKind.STEP, payload) for i, payload in enumerate(payloads)]
    expected = trace_pb2.ListStepsResponse(
        steps=[step_pb2.Step.FromString(payload) for payload in payloads], next_page_token=token
    )
    assert build_list_steps_response(entries, token) == expected.SerializeToString()
