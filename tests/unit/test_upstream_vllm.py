"""vLLM's server: what it is, and what it shows of each token of a completion."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from fake_upstream import FakeUpstream, make_events
from fake_vllm import END, RAW, answer_probe, completion, serving_vllm
from upstream_cases import ask, collect, get_chunks, get_end, get_prompt

from whence_server.domain import errors
from whence_server.domain.constraints import Constraint, Language
from whence_server.domain.decoding import FinishReason, Strategy
from whence_server.domain.observation import Distribution, Tables
from whence_server.engines.upstream.client import UpstreamClient
from whence_server.engines.upstream.opening import open_upstream


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with serving_vllm() as served:
        yield served


@pytest.fixture
async def client(upstream: FakeUpstream) -> AsyncIterator[UpstreamClient]:
    opened = await open_upstream(f"{upstream.url}/v1")
    await opened.describe()
    upstream.asked.clear()
    upstream.headers.clear()
    yield opened
    await opened.close()


async def test_it_is_found_and_described(upstream: FakeUpstream) -> None:
    client = await open_upstream(upstream.url)
    description = await client.describe()
    await client.close()
    assert (description.kind, description.version, description.model) == ("vllm", "0.32.0", "smol")
    assert (description.claimed_files, description.max_context_length) == ("/models/smol", 2048)
    assert description.processor_order == ("temperature", "min_p", "top_k", "top_p")


@pytest.mark.parametrize(
    ("mode", "distribution"),
    [
        ("raw", Distribution.RAW),
        ("temperature", Distribution.AFTER_TEMPERATURE),
        ("processed", Distribution.PROCESSED),
        ("logits", Distribution.NONE),
    ],
)
async def test_an_experiment_finds_the_servers_mode(
    upstream: FakeUpstream, mode: str, distribution: Distribution
) -> None:
    answer_probe(upstream, mode)
    client = await open_upstream(upstream.url)
    await client.describe()
    grades = client.grade(ask())
    await client.close()
    assert grades.distribution is distribution
    assert (grades.tables is Tables.NONE) is (distribution is Distribution.NONE)


async def test_the_experiment_finds_a_smaller_limit_of_the_server(upstream: FakeUpstream) -> None:
    answer = upstream.routes["POST", "/v1/completions"]

    async def refuse_many(request: web.Request) -> web.StreamResponse:
        if (await request.json()).get("logprobs", 0) > 6:
            message = "Requested sample logprobs of 20, which is greater than max allowed: 6"
            return web.json_response({"error": {"message": message}}, status=400)
        return await answer(request)

    upstream.answer("POST", "/v1/completions", refuse_many)
    client = await open_upstream(upstream.url)
    description = await client.describe()
    assert description.max_candidates == 5
    assert client.grade(ask()).distribution is Distribution.RAW
    with pytest.raises(errors.InvalidRequestError, match="at most 5"):
        client.check(ask(num_candidates=6))
    await client.close()


async def test_a_server_that_refuses_logprobs_is_used_without_them(upstream: FakeUpstream) -> None:
    answer = upstream.routes["POST", "/v1/completions"]

    async def refuse(request: web.Request) -> web.StreamResponse:
        if "logprobs" in await request.json():
            return web.json_response({"error": {"message": "no logprobs here"}}, status=400)
        return await answer(request)

    upstream.answer("POST", "/v1/completions", refuse)
    client = await open_upstream(upstream.url)
    description = await client.describe()
    assert description.max_candidates == 0
    grades = client.grade(ask(num_candidates=0))
    assert (grades.distribution, grades.tables) == (Distribution.NONE, Tables.NONE)
    await collect(client, ask(num_candidates=0))
    await client.close()


async def test_logits_are_not_asked_for_again(upstream: FakeUpstream) -> None:
    answer_probe(upstream, "logits")
    client = await open_upstream(upstream.url)
    await client.describe()
    upstream.answer_stream("/v1/completions", make_events(END))
    with pytest.raises(errors.UpstreamUnfinishedError):
        await collect(client, ask())
    await client.close()
    assert "logprobs" not in upstream.get_bodies("/v1/completions")[-1]


async def test_a_completion_has_ids_logprobs_candidates_and_its_end(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream(
        "/v1/completions",
        make_events(
            completion(" Paris", [7042], [RAW], prompt_token_ids=[504, 7]),
            # The chosen token is none of the two most likely ones, and comes besides them.
            completion(
                ".",
                [30],
                [{"token_id:30": -3.0, "token_id:28": -0.5, "token_id:29": -1.0}],
                prompt_token_ids=None,
            ),
            completion("", [2], [{"token_id:2": -0.1}], finish_reason="stop", stop_reason=None),
            END,
        ),
        piece_bytes=11,
    )
    events = await collect(client, ask())
    assert get_prompt(events).token_ids == (504, 7)
    first, second, third = get_chunks(events)
    (token,) = first.tokens
    assert (token.text, token.token_id, token.logprob, token.rank) == (" Paris", 7042, -0.25, 0)
    assert token.candidates is not None
    assert [(c.token_id, c.logprob) for c in token.candidates] == [(7042, -0.25), (260, -2.5)]
    (other,) = second.tokens
    assert (other.token_id, other.logprob, other.rank) == (30, -3.0, None)
    assert other.candidates is not None
    assert [c.token_id for c in other.candidates] == [28, 29]
    assert (third.finish, third.tokens[0].token_id) == (FinishReason.END_OF_SEQUENCE, 2)
    end = get_end(events)
    assert (end.num_prompt_tokens, end.num_generated_tokens) == (5, 2)
    assert (end.fingerprint, end.model) == ("vllm-0.32.0", "smol")


async def test_several_tokens_of_one_chunk_share_its_text(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream(
        "/v1/completions",
        make_events(
            completion(" Paris.", [7042, 30], [RAW, {"token_id:30": -0.1}], finish_reason="length"),
            END,
        ),
    )
    (chunk,) = get_chunks(await collect(client, ask()))
    assert chunk.text == " Paris."
    assert [(token.text, token.token_id) for token in chunk.tokens] == [("", 7042), ("", 30)]


async def test_text_that_is_held_back_is_not_taken_for_a_tokens_own(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    # " Paris" could begin the stop string, so that only its space is sent.
    upstream.answer_stream(
        "/v1/completions",
        make_events(
            completion(" ", [7042], [RAW]),
            completion("Paris.", [30], [{"token_id:30": -0.1}], finish_reason="length"),
            END,
        ),
    )
    first, second = get_chunks(await collect(client, ask(stop=("Paris!",))))
    assert (first.text, first.tokens[0].text, first.tokens[0].token_id) == (" ", "", 7042)
    assert (second.text, second.tokens[0].text) == ("Paris.", "")


async def test_less_than_is_no_logprob(upstream: FakeUpstream, client: UpstreamClient) -> None:
    top = {"token_id:5": -9999.0, "token_id:6": -0.1}
    upstream.answer_stream(
        "/v1/completions", make_events(completion("x", [5], [top], finish_reason="length"), END)
    )
    (token,) = get_chunks(await collect(client, ask()))[0].tokens
    assert (token.logprob, token.rank) == (None, None)
    assert token.candidates is not None
    assert [c.token_id for c in token.candidates] == [6]


@pytest.mark.parametrize(
    ("reason", "stop_reason", "finish", "stop"),
    [
        ("stop", None, FinishReason.END_OF_SEQUENCE, ""),
        ("stop", "END", FinishReason.STOP, "END"),
        ("stop", 30, FinishReason.STOP, "30"),
        ("length", None, FinishReason.LENGTH, ""),
        ("repetition", None, FinishReason.STOP, "repetition"),
    ],
)
async def test_the_reason_of_the_end_is_told(
    upstream: FakeUpstream,
    client: UpstreamClient,
    reason: str,
    stop_reason: str | int | None,
    finish: FinishReason,
    stop: str,
) -> None:
    last = completion("x", [5], [RAW], finish_reason=reason, stop_reason=stop_reason)
    upstream.answer_stream("/v1/completions", make_events(last, END))
    (chunk,) = get_chunks(await collect(client, ask()))
    assert (chunk.finish, chunk.stop) == (finish, stop)


async def test_every_setting_is_sent(upstream: FakeUpstream, client: UpstreamClient) -> None:
    request = ask(
        prompt=(504, 7),
        temperature=0.5,
        min_new_tokens=2,
        stop=("x",),
        stop_token_ids=(30,),
        bad_words=("y",),
        logit_bias=((3, -1.5),),
        constraint=Constraint(Language.JSON_SCHEMA, '{"type": "object"}'),
        passed_on={"priority": 3, "return_token_ids": True},
        trace_headers={"traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01", "cookie": "a"},
    )
    client.check(request)
    await collect(client, request)
    (body,) = upstream.get_bodies("/v1/completions")
    assert body == {
        "model": "smol",
        "prompt": [504, 7],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "logprobs": 2,
        "max_tokens": 8,
        "min_tokens": 2,
        "stop": ["x"],
        "stop_token_ids": [30],
        "ignore_eos": False,
        "n": 1,
        "add_special_tokens": True,
        "repetition_penalty": 1.0,
        "logit_bias": {"3": -1.5},
        "bad_words": ["y"],
        "temperature": 0.5,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 7,
        "structured_outputs": {"json": {"type": "object"}},
        "priority": 3,
    }
    (headers,) = upstream.headers
    assert headers["traceparent"].endswith("-01")
    assert headers["x-request-id"] == request.generation_id
    assert "cookie" not in headers


async def test_greedy_decoding_is_temperature_0_without_a_seed(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    answer_probe(upstream, "raw")
    upstream.answer_stream("/v1/completions", make_events(END))
    with pytest.raises(errors.UpstreamUnfinishedError):
        await collect(client, ask(strategy=Strategy.GREEDY))
    (body,) = upstream.get_bodies("/v1/completions")
    assert body["temperature"] == 0.0
    assert "seed" not in body


async def test_asked_again_it_has_the_same_model_and_maybe_another_mode(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    answer_probe(upstream, "processed")
    await client.describe()
    assert client.grade(ask()).distribution is Distribution.PROCESSED
    upstream.answer_json("GET", "/v1/models", {"data": [{"id": "large"}]})
    with pytest.raises(errors.UpstreamModelError, match="'smol'; it serves 'large'"):
        await client.describe()
