"""Tokens and usage of OpenAI's API, where an upstream does not tell everything."""

from whence.v1.generation_pb2 import GenerationFinished
from whence.v1.step_pb2 import Candidates, Step
from whence_server.http.openai.outcome import make_logprob, make_usage


def test_a_candidate_without_a_text_is_spelled_by_its_id() -> None:
    candidates = Candidates(token_ids=[7042, 260, 30], logprobs=[-0.25, -2.0, -3.0])
    step = Step(token_id=7042, token_text=" Paris", logprob=-0.25, candidates=candidates)

    told = make_logprob(step, None, 2)

    assert told["token"] == " Paris"
    assert told["top_logprobs"] == [
        {"token": " Paris", "bytes": list(b" Paris"), "logprob": -0.25},
        {"token": "token_id:260", "bytes": None, "logprob": -2.0},
    ]


def test_a_candidate_without_an_id_keeps_its_text() -> None:
    candidates = Candidates(texts=["a", "b"], text_logprobs=[-0.5, -1.0])
    step = Step(token_text="a", logprob=-0.5, candidates=candidates)

    assert [top["token"] for top in make_logprob(step, None, 5)["top_logprobs"]] == ["a", "b"]


def test_cached_tokens_that_were_not_told_are_absent() -> None:
    finished = GenerationFinished(num_prompt_tokens=5, num_generated_tokens=2)
    assert make_usage(finished) == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
    }
    finished.num_cached_prompt_tokens = 0
    assert make_usage(finished)["prompt_tokens_details"] == {"cached_tokens": 0}
