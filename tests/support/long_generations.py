"""Generations that run for long, and their ends and occurrences on record."""

import time
from typing import Any

import grpc

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, trace_pb2, trace_pb2_grpc
from whence.v1.occurrence_pb2 import Occurrence

FROM_THE_BEGINNING = "cDE6MA=="  # "p1:0"
"""Position of a watch that begins with the journal."""


def endless(**fields: object) -> g.GenerateRequest:
    """Return a request for 8,000 tokens."""
    return g.GenerateRequest(
        prompt="The quick brown fox",
        decoding=g.Decoding(sample=g.Sample(seed=1), max_new_tokens=8_000, ignore_eos=True),
        **fields,
    )


def generate(channel: grpc.Channel, request: g.GenerateRequest) -> Any:
    """Start a generation, and return the call."""
    return generation_pb2_grpc.GenerationServiceStub(channel).Generate(request)


def first_step(call: Any) -> str:
    """Read a stream up to its first step; return the id of its generation."""
    generation_id = ""
    for response in call:
        if response.event.HasField("started"):
            generation_id = response.event.started.generation_id
        if response.event.HasField("steps"):
            return generation_id
    raise AssertionError("the stream ended before its first step")


def wait_finished(channel: grpc.Channel, generation_id: str) -> g.GenerationFinished:
    """Wait for a generation's end without being one of its readers; return the end.

    It watches from the journal's start.
    """
    watch = trace_pb2_grpc.TraceServiceStub(channel).WatchGenerations(
        trace_pb2.WatchGenerationsRequest(lifecycle_only=True, after_position=FROM_THE_BEGINNING)
    )
    try:
        for update in watch:
            if update.generation_id == generation_id and update.event.HasField("finished"):
                return update.event.finished
    finally:
        watch.cancel()
    raise AssertionError("the watch ended")


def read_occurrences(channel: grpc.Channel, generation_id: str) -> list[Occurrence]:
    """Return the occurrences on a generation's record."""
    request = trace_pb2.GetGenerationRequest(generation_id=generation_id)
    return list(trace_pb2_grpc.TraceServiceStub(channel).GetGeneration(request).occurrences)


def await_occurrence(channel: grpc.Channel, generation_id: str) -> None:
    """Wait until a generation has an occurrence, which no stream has."""
    give_up = time.monotonic() + 60
    while not read_occurrences(channel, generation_id):
        assert time.monotonic() < give_up, "the server has recorded no occurrence"
        time.sleep(0.01)
