"""Logic of resuming streams, without a connection."""

from typing import Any

import pytest
from client_fake_server import batched, journal, step
from hypothesis import given
from hypothesis import strategies as st

from whence.backoff import Backoff, RetryPolicy
from whence.errors import InternalError, NotFoundError, Origin, UnavailableError
from whence.generation import FinishReason, GenerationState
from whence.resume import GenerationStream, Resumable, TrainingRunStream, WatchStream
from whence.v1 import generation_pb2 as pb
from whence.v1.model_pb2 import GetVocabularyRequest, GetVocabularyResponse
from whence.v1.trace_pb2 import WatchGenerationsRequest, WatchGenerationsResponse
from whence.v1.training_pb2 import WatchTrainingRunRequest, WatchTrainingRunResponse
from whence.vocabulary import VocabularyStream

REQUEST = pb.GenerateRequest(prompt="p", generation_id="g")


def gone() -> UnavailableError:
    """Make the error of a connection that broke."""
    return UnavailableError("gone", origin=Origin.PATH)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def stream_and_clock(timeout_s: float | None = None) -> tuple[GenerationStream, Clock]:
    clock = Clock()
    backoff = Backoff(RetryPolicy(), clock=clock, jitter=lambda: 0.5)
    return GenerationStream(REQUEST, backoff, timeout_s=timeout_s, clock=clock), clock


@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 4), max_size=12),
    overlap=st.integers(0, 5),
)
def test_every_step_comes_once_in_order_whatever_the_batches_and_breaks(sizes, cuts, overlap):
    """The server may repeat up to `overlap` events before the requested one."""
    whole = journal([step(index, 1, str(index)) for index in range(10)])
    stream, _ = stream_and_clock()
    seen: list[int] = []
    for turn in range(len(whole) + len(cuts) + 1):
        request, _ = stream.prepare_call()
        after = getattr(request, "after_offset", 0)
        assert (after == 0) == isinstance(request, pb.GenerateRequest)
        first = min(max(0, after - overlap), len(whole) - 1)
        rest = whole[first:]
        if first == 0:
            events = batched(rest, sizes[turn % len(sizes)])
        else:
            events = batched([whole[0], *rest], sizes[turn % len(sizes)])[1:]
        limit = cuts[turn] if turn < len(cuts) else len(events)
        for event in events[:limit]:
            fresh = stream.receive(pb.GenerateResponse(event=event))
            if fresh is not None:
                seen += [s.index for s in fresh.steps.steps]
        if stream.complete:
            break
        stream.handle_break(gone())
    assert stream.complete
    assert seen == list(range(10))


def test_a_gap_and_an_indivisible_event_are_errors():
    stream, _ = stream_and_clock()
    stream.receive(pb.GenerateResponse(event=pb.GenerationEvent(first_offset=1, last_offset=1)))
    with pytest.raises(InternalError, match="event 3 came after 1"):
        stream.receive(pb.GenerateResponse(event=pb.GenerationEvent(first_offset=3, last_offset=3)))
    overlapping = pb.GenerationEvent(
        first_offset=1, last_offset=2, steps=pb.StepBatch(steps=[step(0, 1, "a")])
    )
    with pytest.raises(InternalError, match="middle"):
        stream.receive(pb.GenerateResponse(event=overlapping))


@pytest.mark.parametrize("offset", [2, 5, 6])
def test_finished_ends_the_stream_whatever_its_offset_and_once(offset):
    """The server's record may end before the last offset that was received: 5."""
    stream, _ = stream_and_clock()
    for event in batched(journal([step(index, 1, str(index)) for index in range(4)]), 2)[:-1]:
        stream.receive(pb.GenerateResponse(event=event))
    assert not stream.complete
    end = pb.GenerationEvent(
        first_offset=offset, last_offset=offset, finished=pb.GenerationFinished(queue_ns=1)
    )
    response = pb.ResumeGenerationResponse(event=end, num_unrecorded_offsets=6 - offset)
    assert stream.receive(response) == end
    assert stream.complete
    assert stream.receive(response) is None


def test_a_stream_that_goes_on_from_the_record_says_so_and_keeps_what_came_before():
    stream, _ = stream_and_clock()
    state = GenerationState("g", lambda *_: "", stream)
    begin, *given, end = journal([step(index, 1, str(index)) for index in range(4)])
    end.finished.sequences[0].ClearField("text")
    end.finished.sequences[0].ClearField("token_ids")
    for event in (begin, *given[:2]):
        state._observe(stream.receive(pb.GenerateResponse(event=event)))
    assert not state.lacks_content
    for event in given[2:]:
        event.steps.steps[0].ClearField("text")
        event.steps.steps[0].ClearField("token_id")
    for event in (*given[2:], end):
        response = pb.ResumeGenerationResponse(event=event, content=pb.CONTENT_POLICY_NONE)
        state._observe(stream.receive(response))
    assert state.lacks_content
    (sequence,) = state.sequences
    assert (sequence.text, sequence.token_ids, sequence.message) == ("01", (1, 1), None)


def test_an_end_beyond_a_gap_is_an_error():
    stream, _ = stream_and_clock()
    end = pb.GenerationEvent(first_offset=2, last_offset=2, finished=pb.GenerationFinished())
    with pytest.raises(InternalError, match="missing"):
        stream.receive(pb.GenerateResponse(event=end))
    assert not stream.complete


def test_waits_double_up_to_their_bound_and_begin_anew_after_progress():
    stream, clock = stream_and_clock()
    event = pb.GenerationEvent(first_offset=1, last_offset=1)
    stream.receive(pb.GenerateResponse(event=event))
    waits = [stream.handle_break(gone()) for _ in range(9)]
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.5, 2.5, 2.5]
    event.first_offset = event.last_offset = 2
    clock.now += 1000
    stream.receive(pb.GenerateResponse(event=event))
    assert stream.handle_break(None) == 0.05


def test_patience_ends_sooner_before_the_first_event():
    for events, patience_s in ((0, 5.0), (1, 30.0)):
        stream, clock = stream_and_clock()
        for _ in range(events):
            first = pb.GenerationEvent(first_offset=1, last_offset=1)
            stream.receive(pb.GenerateResponse(event=first))
        stream.handle_break(gone())
        clock.now += patience_s - 0.01
        assert stream.handle_break(gone()) == pytest.approx(0.01)
        clock.now += 0.01
        with pytest.raises(UnavailableError, match="gone"):
            stream.handle_break(gone())
        with pytest.raises(UnavailableError, match="ended before the generation finished"):
            stream.handle_break(None)


def test_a_repeated_event_is_no_progress():
    stream, clock = stream_and_clock()
    event = pb.GenerateResponse(event=pb.GenerationEvent(first_offset=1, last_offset=1))
    stream.receive(event)
    stream.handle_break(None)
    clock.now += 30
    assert stream.receive(event) is None
    with pytest.raises(UnavailableError):
        stream.handle_break(None)


def test_progress_repeats_an_offset_and_shows_that_the_stream_lives():
    stream, clock = stream_and_clock()
    early = pb.GenerationEvent(progress=pb.GenerationProgress(num_generations_ahead=3))
    assert stream.receive(pb.GenerateResponse(event=early)) == early
    assert stream.prepare_call()[0] == REQUEST
    stream.receive(pb.GenerateResponse(event=pb.GenerationEvent(first_offset=1, last_offset=1)))
    late = pb.GenerationEvent(first_offset=1, last_offset=1, progress=pb.GenerationProgress())
    stream.handle_break(None)
    clock.now += 29
    assert stream.receive(pb.ResumeGenerationResponse(event=late)) == late
    clock.now += 29
    assert stream.handle_break(None) == 0.05, "the patience has begun anew"
    assert stream.prepare_call()[0].after_offset == 1
    assert not stream.complete


def test_watches_resume_after_positions_without_events_which_they_hide():
    backoff = Backoff(RetryPolicy())
    watch = WatchStream(WatchGenerationsRequest(), backoff)
    event = WatchGenerationsResponse(position="p1", event=pb.GenerationEvent())
    assert watch.receive(event) == event
    assert watch.receive(WatchGenerationsResponse(position="p2")) is None
    assert watch.prepare_call()[0].after_position == "p2"
    run = TrainingRunStream(WatchTrainingRunRequest(), backoff)
    assert run.receive(WatchTrainingRunResponse(last_position=7)) is None
    assert run.prepare_call()[0].after_position == 7


def test_only_what_can_pass_is_waited_for_and_the_server_may_say_how_long():
    stream, _ = stream_and_clock()
    with pytest.raises(NotFoundError):
        stream.handle_break(NotFoundError("no such generation", origin=Origin.SERVER))
    busy = UnavailableError("busy", origin=Origin.SERVER, retry_delay_s=2.0)
    assert stream.handle_break(busy) == 2.0


def test_the_deadline_spans_all_calls():
    stream, clock = stream_and_clock(timeout_s=10.0)
    assert stream.prepare_call() == (REQUEST, 10.0)
    clock.now += 9.99
    assert stream.handle_break(gone()) == pytest.approx(0.01)
    clock.now += 1
    assert stream.prepare_call() == (REQUEST, 0.0)


def make_streams() -> list[Resumable[Any]]:
    def backoff() -> Backoff:
        return Backoff(RetryPolicy(), jitter=lambda: 0.5)

    return [
        GenerationStream(REQUEST, backoff()),
        WatchStream(WatchGenerationsRequest(), backoff()),
        TrainingRunStream(WatchTrainingRunRequest(), backoff()),
        VocabularyStream(GetVocabularyRequest(), backoff()),
    ]


@pytest.mark.parametrize("number", range(len(make_streams())))
def test_every_kind_of_stream_follows_the_same_rule(number):
    stream = make_streams()[number]
    first, _ = stream.prepare_call()
    assert stream.handle_break(InternalError("reset", origin=Origin.PATH)) == 0.05
    assert stream.prepare_call()[0] == first
    with pytest.raises(InternalError, match="a bug"):
        stream.handle_break(InternalError("a bug", origin=Origin.SERVER))
    with pytest.raises(InternalError, match="could not parse"):
        stream.receive(None)  # type: ignore[arg-type]  # gRPC's asyncio API yields it


def test_a_vocabulary_that_never_gets_further_is_given_up():
    clock = Clock()
    stream = VocabularyStream(GetVocabularyRequest(), Backoff(RetryPolicy(), clock=clock))
    part = GetVocabularyResponse(first_token_id=0, tokens=[b"a", b"b"])
    assert stream.receive(part) == part
    stream.handle_break(gone())
    clock.now += 30
    assert stream.receive(part) == part
    with pytest.raises(UnavailableError):
        stream.handle_break(gone())


def test_finish_reasons_follow_the_contract():
    for number in pb.FinishReason.values():
        reason = FinishReason.from_wire(number)
        assert (reason is FinishReason.UNKNOWN) == (number == 0)
    assert FinishReason.from_wire(99) is FinishReason.UNKNOWN
