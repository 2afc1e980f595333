"""vLLM's server: what it shows of each token is on record, what it hides is absent."""

import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from fake_upstream import FakeUpstream, make_events, serving, streaming
from upstream_cases import CHAT, ask, collect, get_chunks, get_end, get_prompt

from whence_server.domain import errors
from whence_server.domain.chat import ChatInput, ChatMessage, ToolCall
from whence_server.domain.constraints import Constraint, Language
from whence_server.domain.decoding import FinishReason, Strategy
from whence_server.domain.observation import Distribution, SecondDistribution, Tables, TokenIds
from whence_server.engines.upstream.client import UpstreamClient
from whence_server.engines.upstream.opening import open_upstream

MODELS = {
    "data": [{"id": "smol", "owned_by": "vllm", "root": "/models/smol", "max_model_len": 2048}]
}
RAW = {"token_id:7042": -0.25, "token_id:260": -2.5}


def completion(
    text: str, ids: list[int], tops: list[dict[str, float]], **more: Any
) -> dict[str, Any]:
    """Return a chunk of a completion; the first of each table is the chosen token."""
    logprobs = {
        "text_offset": [0] * len(ids),
        "tokens": [f"token_id:{number}" for number in ids],
        "token_logprobs": [
            top.get(f"token_id:{number}", -3.0) for number, top in zip(ids, tops, strict=True)
        ],
        "top_logprobs": tops,
    }
    choice = {"index": 0, "text": text, "logprobs": logprobs, "token_ids": ids}
    return {"model": "smol", "choices": [choice | {"finish_reason": None} | more]}


END = {
    "model": "smol",
    "choices": [],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    "system_fingerprint": "vllm-0.32.0",
}


def answer_probe(served: FakeUpstream, mode: str) -> None:
    """Answer completions with logprobs as one of the modes of the server makes them."""
    logits = {"token_id:7042": 3.0, "token_id:260": 1.0}

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        temperature = body["temperature"] if mode != "raw" else 1.0
        scaled = {key: value / temperature for key, value in logits.items()}
        if mode == "processed" and body["top_p"] < 0.5:
            scaled.pop("token_id:260")
        # Most of the mass lies outside of the table.
        rest = 0.0 if len(scaled) == 1 else math.exp(2.0 / temperature)
        total = math.log(sum(map(math.exp, scaled.values())) + rest)
        top = {key: value - total for key, value in scaled.items()}
        if mode == "logits":
            top = logits
        async with streaming(request) as response:
            await response.write(
                make_events(completion(" Paris", [7042], [top], finish_reason="length"), END)
            )
        return response

    served.answer("POST", "/v1/completions", answer)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with serving() as served:
        served.answer_json("GET", "/version", {"version": "0.32.0"})
        served.answer_json("GET", "/v1/models", MODELS)
        answer_probe(served, "raw")
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


def chat_chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return {"model": "smol", "choices": [choice | more]}


def chat_logprobs(
    text: str, token_id: int, logprob: float, *tops: tuple[int, float]
) -> dict[str, Any]:
    def one(number: int, value: float) -> dict[str, Any]:
        spelled = f"token_id:{number}"
        return {"token": spelled, "logprob": value, "bytes": list(spelled.encode())}

    content = one(token_id, logprob) | {"bytes": list(text.encode())}
    content["top_logprobs"] = [one(*top) for top in tops]
    return {"content": [content]}


async def test_a_chat_has_the_templates_text_ids_and_tables_without_the_extra_entry(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    first = chat_chunk({"role": "assistant", "content": ""})
    first |= {"prompt_token_ids": [1, 2], "prompt_text": "<user>"}
    upstream.answer_stream(
        "/v1/chat/completions",
        make_events(
            first,
            # Three were asked for: the chosen token takes the place of the third most likely one.
            chat_chunk(
                {"content": "Paris"},
                token_ids=[9],
                logprobs=chat_logprobs("Paris", 9, -4.0, (9, -4.0), (7, -0.5), (8, -1.0)),
            ),
            chat_chunk(
                {"content": "."},
                token_ids=[7],
                logprobs=chat_logprobs(".", 7, -1.0, (7, -1.0), (8, -0.5), (5, -2.0)),
                finish_reason="stop",
                stop_reason=None,
            ),
            END,
        ),
    )
    chat = ChatInput(
        (
            ChatMessage("assistant", None, tool_calls=(ToolCall("f", '{"a": 1}', "c1"),)),
            ChatMessage("tool", ("one", "two"), tool_call_id="c1"),
        ),
        template_arguments_json='{"thinking": false}',
    )
    events = await collect(client, ask(chat))
    prompt = get_prompt(events)
    assert (prompt.text, prompt.token_ids) == ("<user>", (1, 2))
    (body,) = upstream.get_bodies("/v1/chat/completions")
    assert (body["logprobs"], body["top_logprobs"], body["return_prompt_text"]) == (True, 3, True)
    assert body["messages"][0]["tool_calls"][0]["function"] == {
        "name": "f",
        "arguments": '{"a": 1}',
    }
    assert body["messages"][1]["content"] == [
        {"type": "text", "text": "one"},
        {"type": "text", "text": "two"},
    ]
    assert body["chat_template_kwargs"] == {"thinking": False}
    assert "add_special_tokens" not in body
    outside, inside = [chunk.tokens[0] for chunk in get_chunks(events)]
    assert outside.candidates is not None
    assert inside.candidates is not None
    assert [c.token_id for c in outside.candidates] == [7, 8]
    assert (outside.rank, outside.text) == (None, "Paris")
    assert [c.token_id for c in inside.candidates] == [8, 7]
    assert inside.rank == 1


async def test_reasoning_and_tool_calls_are_pieces_of_their_own(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream(
        "/v1/chat/completions",
        make_events(
            chat_chunk({"reasoning": "hm"}, token_ids=[4]),
            chat_chunk({"tool_calls": [{"index": 0}]}, token_ids=[5]),
            chat_chunk({}, token_ids=[2], finish_reason="tool_calls", stop_reason=None),
            END,
        ),
    )
    reasoning, call, end = get_chunks(await collect(client, ask(CHAT, num_candidates=None)))
    assert (reasoning.reasoning, reasoning.text) == ("hm", "")
    assert call.tool_calls_json == '[{"index":0}]'
    assert end.finish is FinishReason.END_OF_SEQUENCE
    assert [chunk.tokens[0].token_id for chunk in (reasoning, call, end)] == [4, 5, 2]


async def test_a_constraint_takes_the_meaning_from_raw(client: UpstreamClient) -> None:
    free = client.grade(ask())
    assert (free.token_ids, free.distribution) == (TokenIds.SAMPLED, Distribution.RAW)
    assert free.second_distribution is SecondDistribution.NONE
    for masked in (
        ask(constraint=Constraint(Language.REGEX, "a+")),
        ask(passed_on={"structured_outputs": {"choice": ["a"]}}),
        ask(CHAT, passed_on={"tool_choice": "required"}),
    ):
        assert client.grade(masked).distribution is Distribution.UNKNOWN
    assert client.grade(ask(passed_on={"tool_choice": "auto"})).distribution is Distribution.RAW


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"typical_p": 0.5}, "decoding.sample.typical_p"),
        ({"no_repeat_ngram_size": 2}, "decoding.no_repeat_ngram_size"),
        ({"logit_bias": ((3, 101.0),)}, "decoding.logit_bias"),
        ({"seed": 2**63}, "decoding.sample.seed"),
        # vLLM would take 0.01 in its place.
        ({"temperature": 0.009}, "decoding.sample.temperature"),
        ({"constraint": Constraint(Language.GRAMMAR, "a")}, "decoding.constraint.grammar"),
        ({"passed_on": {"echo": True}}, "echo"),
        # whence ends the text before a stop string, which it searches itself.
        ({"passed_on": {"include_stop_str_in_output": True}}, "include_stop_str_in_output"),
        ({"passed_on": {"seed": 99}}, "seed"),
        ({"passed_on": {"stream_options": {}}}, "stream_options"),
        ({"num_candidates": 21}, "trace.num_candidates"),
        ({"prompt": ChatInput(CHAT.messages, template_name="x")}, "chat.template_name"),
        ({"prompt": ChatInput(CHAT.messages, tools_json="{")}, "chat.tools_json"),
        ({"prompt": ChatInput(CHAT.messages, tools_json="{}")}, "chat.tools_json"),
    ],
)
def test_an_option_that_it_cannot_apply_is_refused_by_name(
    client: UpstreamClient, settings: dict[str, Any], path: str
) -> None:
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.check(ask(**settings))
    assert [violation.field for violation in caught.value.violations] == [path]


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (completion("x", [5, 6], [RAW, RAW]) | {"choices": "x"}, "`choices`"),
        ({"model": "smol", "choices": [{"index": 1, "text": "x"}]}, "index 1"),
        ({"model": "smol", "choices": [{"index": 0, "text": 3}]}, r"`choices\[0\]\.text`"),
        (completion("x", [5], [{"token_id:5": 0.5}]), "not above 0"),
        (completion("x", [5], [RAW], token_ids=[5, 6]), "2 token ids and logprobs of 1"),
        (completion("x", [5], [RAW], token_ids=[-5]), "a token id"),
        ({"model": "smol", "choices": [[]]}, r"`choices\[0\]`"),
    ],
)
async def test_a_chunk_that_breaks_the_form_is_named_with_its_place(
    upstream: FakeUpstream, client: UpstreamClient, chunk: Any, words: str
) -> None:
    upstream.answer_stream("/v1/completions", make_events(chunk))
    with pytest.raises(errors.UpstreamMalformedError, match=words):
        await collect(client, ask())


async def test_an_event_that_is_no_json_is_named(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream("/v1/completions", b"data: {oops\n\n")
    with pytest.raises(errors.UpstreamMalformedError, match=r"event is not JSON .*oops"):
        await collect(client, ask())


async def test_an_answer_without_a_finish_reason_is_unfinished(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream("/v1/completions", make_events(completion("x", [5], [RAW])))
    with pytest.raises(errors.UpstreamUnfinishedError, match="1 of 1 sequences"):
        await collect(client, ask())


async def test_an_answer_of_another_model_is_refused(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream("/v1/completions", make_events(END | {"model": "other"}))
    with pytest.raises(errors.UpstreamModelError, match="'other', not with 'smol'"):
        await collect(client, ask())


async def test_an_error_in_the_middle_comes_after_what_was_sent(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    upstream.answer_stream(
        "/v1/completions",
        make_events(
            completion("x", [5], [RAW]), {"error": {"message": "EngineDeadError", "code": 500}}
        ),
    )
    events = client.generate(ask())
    assert (await anext(events)).text == "x"  # type: ignore[union-attr]
    with pytest.raises(errors.UpstreamError, match="in the middle of its answer: EngineDeadError"):
        await anext(events)


async def test_a_model_that_is_not_served_is_named(upstream: FakeUpstream) -> None:
    client = await open_upstream(upstream.url, model="large")
    with pytest.raises(errors.UpstreamModelError, match="'large'; it serves 'smol'"):
        await client.describe()
    await client.close()


async def test_asked_again_it_has_the_same_model_and_maybe_another_mode(
    upstream: FakeUpstream, client: UpstreamClient
) -> None:
    answer_probe(upstream, "processed")
    await client.describe()
    assert client.grade(ask()).distribution is Distribution.PROCESSED
    upstream.answer_json("GET", "/v1/models", {"data": [{"id": "large"}]})
    with pytest.raises(errors.UpstreamModelError, match="'smol'; it serves 'large'"):
        await client.describe()


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
