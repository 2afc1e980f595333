"""The prefix cache of a server, as its callers see it."""

import random

import grpc
import pytest

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc


def generate(channel: grpc.Channel, token_ids: list[int]) -> g.GenerationFinished:
    request = g.GenerateRequest(
        tokens=g.TokenInput(token_ids=token_ids),
        decoding=g.Decoding(greedy=g.Greedy(), max_new_tokens=20, ignore_eos=True),
    )
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    finished = list(stub.Generate(request))[-1].event.finished
    assert finished.HasField("num_cached_prompt_tokens")
    return finished


def test_a_model_tells_the_size_of_its_prefix_cache(channel: grpc.Channel) -> None:
    stub = model_pb2_grpc.ModelServiceStub(channel)
    assert stub.GetModel(model_pb2.GetModelRequest()).model.prefix_cache_tokens == 16_384


def test_a_generation_tells_how_much_of_its_prompt_was_cached(channel: grpc.Channel) -> None:
    choose = random.Random("prefixes")
    chat = [choose.randrange(1, 400) for _ in range(40)]
    first = generate(channel, chat)
    assert first.num_cached_prompt_tokens == 0
    again = generate(channel, chat)
    assert again.num_cached_prompt_tokens == 32
    (answer,), (same,) = first.sequences, again.sequences
    assert answer.token_ids == same.token_ids
    assert answer.logprob == pytest.approx(same.logprob, abs=20 * 1e-4)
    chat += [*answer.token_ids, 7, 8, 9]
    assert generate(channel, chat).num_cached_prompt_tokens == 48, "the answer's as well"
