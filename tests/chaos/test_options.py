"""Whatever one caller's options are, it is that caller's own affair.

Innocent streams run beside requests whose options lie at, within and beyond their bounds, and have
to give the tokens that they give undisturbed. What is beyond its bounds is refused by name; what
is not either ends well or fails by its own settings.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from extreme_requests import Extremes
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc

NUM_HOSTILE = 24
"""Requests of a round."""
Tokens = list[list[int]]


def witness(decoding: g.Decoding, detail: g.TraceDetail, prompt: str) -> g.GenerateRequest:
    decoding.max_new_tokens = 60
    decoding.ignore_eos = True
    return g.GenerateRequest(
        prompt=prompt, decoding=decoding, trace=g.TraceOptions(detail=detail, num_candidates=3)
    )


WITNESSES = [
    witness(g.Decoding(greedy=g.Greedy()), g.TRACE_DETAIL_TOKENS, "The quick brown fox"),
    witness(
        g.Decoding(greedy=g.Greedy(), repetition_penalty=1.3, no_repeat_ngram_size=2),
        g.TRACE_DETAIL_DECISIONS,
        "A token, a reason",
    ),
    witness(
        g.Decoding(
            sample=g.Sample(seed=7, temperature=0.9, top_p=0.95, eta_cutoff=1e-3, min_p=1e-3),
            num_return_sequences=2,
        ),
        g.TRACE_DETAIL_DECISIONS,
        "The for statement",
    ),
    witness(
        g.Decoding(beam_search=g.BeamSearch(num_beams=3), num_return_sequences=2),
        g.TRACE_DETAIL_DECISIONS,
        "def generate(prompt)",
    ),
    witness(
        g.Decoding(sample=g.Sample(seed=9, temperature=1.2, typical_p=0.9)),
        g.TRACE_DETAIL_INTERNALS,
        "where did each come from?",
    ),
]


@pytest.fixture
def stub(attacked: ServerProcess) -> Iterator[generation_pb2_grpc.GenerationServiceStub]:
    with grpc.insecure_channel(attacked.target) as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)


def finished(
    stub: generation_pb2_grpc.GenerationServiceStub, request: g.GenerateRequest
) -> g.GenerationFinished:
    return list(stub.Generate(request, timeout=240))[-1].event.finished


def tokens(end: g.GenerationFinished) -> Tokens:
    return [list(sequence.token_ids) for sequence in end.sequences]


def refused_or_ended(
    stub: generation_pb2_grpc.GenerationServiceStub, request: g.GenerateRequest
) -> str:
    """Say how it ended: "" where it did so as it may."""
    try:
        end = finished(stub, request)
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return ""
        return f"{error.code()} {error.details()}"
    failure = end.failure.reason if end.HasField("failure") else ""
    return "" if failure in {"", "NO_TOKEN_LEFT"} else f"{failure} {end.failure.message}"


@pytest.mark.timeout(0)  # as many rounds as are asked for; every call has a deadline
def test_innocent_streams_are_not_disturbed(
    stub: generation_pb2_grpc.GenerationServiceStub, rounds: range
) -> None:
    undisturbed = [tokens(finished(stub, request)) for request in WITNESSES]
    with ThreadPoolExecutor(len(WITNESSES) + NUM_HOSTILE) as callers:
        for seed in rounds:
            extremes = Extremes(seed)
            requests = [extremes.request() for _ in range(NUM_HOSTILE)]
            innocent = [callers.submit(finished, stub, request) for request in WITNESSES]
            ends = list(callers.map(lambda r: (refused_or_ended(stub, r), r), requests))
            for future, expected in zip(innocent, undisturbed, strict=True):
                end = future.result()
                assert not end.HasField("failure"), f"CHAOS_SEED={seed}: {end.failure}"
                assert tokens(end) == expected, f"CHAOS_SEED={seed}"
            faults = [f"{why}\n{request}" for why, request in ends if why]
            assert not faults, f"CHAOS_SEED={seed}: {faults[0]}"
