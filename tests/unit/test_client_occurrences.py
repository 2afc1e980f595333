"""Lines of `whence generations show` about what happened to a generation."""

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from whence.cli.occurrences import list_occurrences
from whence.v1 import occurrence_pb2 as o
from whence.v1.explanation_pb2 import ExplainedSpan, Explanation
from whence.v1.generation_pb2 import GenerationStarted

CALLER = o.Caller(
    method="whence.v1.GenerationService/ResumeGeneration", address="127.0.0.1", port=50_000
)
UNIX = o.Caller(method="whence.v1.GenerationService/CancelGeneration", address="unix")
IPV6 = o.Caller(method="whence.v1.GenerationService/CancelGeneration", address="::1", port=7)


@pytest.mark.parametrize(
    ("happening", "told"),
    [
        (
            {"reader_left": o.ReaderLeft(caller=CALLER, last_offset=9, status_code=4)},
            (
                "ResumeGeneration from 127.0.0.1:50000 ended with DEADLINE_EXCEEDED "
                "after offset 9; calls that still read it: 0"
            ),
        ),
        (
            {"reader_joined": o.ReaderJoined(caller=CALLER, after_offset=9)},
            "ResumeGeneration from 127.0.0.1:50000 began to read after offset 9",
        ),
        (
            {"engine_ended": o.EngineEnded(detail="the engine process ended: signal 9")},
            "the engine process ended: signal 9",
        ),
        ({"engine_resumed": o.EngineResumed()}, "a new engine process continued it"),
        (
            {"cancelled": o.GenerationCancelled(caller=UNIX)},
            "cancelled by CancelGeneration from unix",
        ),
        (
            {"cancelled": o.GenerationCancelled(caller=IPV6)},
            "cancelled by CancelGeneration from [::1]:7",
        ),
        (
            {"cancelled": o.GenerationCancelled(without_reader=Duration(seconds=30))},
            "cancelled, because no call had read it for 30 s",
        ),
        (
            {"max_duration_passed": o.MaxDurationPassed(max_duration=Duration(nanos=500_000_000))},
            "its max_duration of 0.5 s had passed",
        ),
        (
            {
                "explained": o.GenerationExplained(
                    caller=UNIX,
                    explanation=Explanation(
                        span=ExplainedSpan(begin_step=5, end_step=6, text=" Paris", value=-0.05)
                    ),
                )
            },
            (
                'CancelGeneration from unix explained " Paris" (step 5), p = 95.1%; '
                "trust: not measured"
            ),
        ),
        ({}, "an occurrence that this version of whence does not know"),
    ],
)
def test_an_occurrence_is_one_line_with_its_time(happening: dict[str, object], told: str) -> None:
    started = GenerationStarted(start_time=Timestamp(seconds=5))
    time = Timestamp(seconds=6, nanos=250_000_000)
    for num_steps, steps in ((1, "1 step"), (2, "2 steps")):
        occurrence = o.Occurrence(time=time, num_steps=num_steps, **happening)
        (line,) = list_occurrences(started, [occurrence])
        assert line == ("at 1.250 s", f"{told}; {steps} recorded")
