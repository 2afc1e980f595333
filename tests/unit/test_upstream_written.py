"""OpenAI's, Ollama's and SGLang's answers, as their documentation and sources have them.

No server of these kinds runs here: the answers under tests/data/upstreams say so.
"""

from collections.abc import AsyncIterator

import pytest
from fake_upstream import FakeUpstream, RecordedAnswer, read_answers, replay, serving
from upstream_cases import CHAT, ask, collect, get_chunks, get_end, get_prompt

from whence_server.domain import errors
from whence_server.domain.chat import ChatInput, ChatMessage, ToolCall
from whence_server.domain.constraints import Constraint, Language
from whence_server.domain.decoding import FinishReason, Strategy
from whence_server.domain.observation import (
    Distribution,
    Observation,
    Tables,
    TokenIds,
    WeightsOrigin,
)
from whence_server.engines.upstream.client import UpstreamClient
from whence_server.engines.upstream.exchange import UpstreamRequest
from whence_server.engines.upstream.opening import find_kind, open_upstream
from whence_server.engines.upstream.progress import Progress
from whence_server.engines.upstream.wire.address import parse_address
from whence_server.engines.upstream.wire.api_key import ApiKey
from whence_server.engines.upstream.wire.connection import Connection, WireLimits

PIECES = (1, 5, None)
"""Sizes in which a stream arrives; None for all at once."""

_SELF_DESCRIPTION = {"models", "version", "tags", "model_info", "server_info"}


def get_answer(kind: str, name: str) -> RecordedAnswer:
    return next(answer for answer in read_answers(kind) if answer.name == name)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with serving() as served:
        yield served


async def open_kind(upstream: FakeUpstream, kind: str) -> UpstreamClient:
    """Open an upstream that describes itself as the kind does, and is found as that."""
    for answer in read_answers(kind):
        if answer.name in _SELF_DESCRIPTION:
            replay(upstream, answer)
    for name in {
        "openai": ("chat", "completion"),
        "ollama": ("generate",),
        "sglang": ("generate_cumulative",),
    }[kind]:
        replay(upstream, get_answer(kind, name))
    client = await open_upstream(upstream.url)
    description = await client.describe()
    assert description.kind == kind
    return client


def grade(client: UpstreamClient, request: UpstreamRequest) -> Observation:
    client.check(request)
    return client.grade(request)


@pytest.mark.parametrize("piece_bytes", PIECES)
async def test_a_chat_of_openai_has_texts_bytes_and_no_ids(
    upstream: FakeUpstream, piece_bytes: int | None
) -> None:
    client = await open_kind(upstream, "openai")
    replay(upstream, get_answer("openai", "chat"), piece_bytes)
    events = await collect(client, ask(CHAT))
    await client.close()
    chunks = get_chunks(events)
    assert [chunk.text for chunk in chunks] == ["Par", "is", " 🇫", ""]
    tokens = [token for chunk in chunks for token in chunk.tokens]
    assert [(token.text, token.token_id, token.rank) for token in tokens[:2]] == [
        ("Par", None, 0),
        ("is", None, 0),
    ]
    # The third token is none of the two most likely ones, and its logprob is "less than".
    assert (tokens[2].logprob, tokens[2].rank) == (None, None)
    assert tokens[2].raw_bytes == b" \xf0\x9f\x87\xab"
    assert tokens[1].candidates is not None
    assert [(c.text, c.raw_bytes) for c in tokens[1].candidates] == [
        ("is", b"is"),
        ("í", "í".encode()),
    ]
    assert chunks[-1].finish is FinishReason.END_OF_SEQUENCE
    end = get_end(events)
    assert (end.num_prompt_tokens, end.num_generated_tokens) == (14, 3)
    # The alias that was asked for stands for a dated version.
    assert (end.model, end.fingerprint) == ("gpt-4o-mini-2024-07-18", "fp_44709d6fcb")
    body = upstream.get_bodies("/v1/chat/completions")[-1]
    assert (body["max_tokens"], body["seed"], body["top_logprobs"]) == (8, 7, 2)
    assert "top_k" not in body


async def test_pieces_of_a_tool_call_are_passed_on_as_they_come(upstream: FakeUpstream) -> None:
    client = await open_kind(upstream, "openai")
    replay(upstream, get_answer("openai", "chat_tools"))
    chunks = get_chunks(await collect(client, ask(CHAT, num_candidates=None)))
    await client.close()
    assert [chunk.tool_calls_json.count('"function"') > 0 for chunk in chunks] == [
        True,
        True,
        True,
        False,
    ]
    assert chunks[-1].finish is FinishReason.END_OF_SEQUENCE


async def test_a_refusal_is_text_and_a_filter_is_named(upstream: FakeUpstream) -> None:
    client = await open_kind(upstream, "openai")
    replay(upstream, get_answer("openai", "chat_refusal"))
    refusal = get_chunks(await collect(client, ask(CHAT)))
    replay(upstream, get_answer("openai", "chat_filtered"))
    filtered = get_chunks(await collect(client, ask(CHAT)))
    await client.close()
    assert "".join(chunk.text for chunk in refusal) == "I cannot."
    assert (filtered[-1].finish, filtered[-1].stop) == (FinishReason.STOP, "content_filter")


async def test_a_completion_of_openai_has_its_lists_joined(upstream: FakeUpstream) -> None:
    client = await open_kind(upstream, "openai")
    first, second = get_chunks(await collect(client, ask()))
    await client.close()
    assert (first.tokens[0].text, first.tokens[0].logprob) == (" Paris", -0.25)
    assert second.finish is FinishReason.LENGTH
    assert second.tokens[0].candidates is not None
    # The chosen token's entry comes besides the two that were asked for.
    assert [c.text for c in second.tokens[0].candidates] == [",", " and"]
    assert second.tokens[0].rank is None


async def test_openais_errors_are_the_callers_or_the_keys(upstream: FakeUpstream) -> None:
    client = await open_kind(upstream, "openai")
    replay(upstream, get_answer("openai", "error_key"))
    with pytest.raises(errors.UpstreamKeyError, match="Incorrect API key"):
        await collect(client, ask(CHAT))
    replay(upstream, get_answer("openai", "error_rate"))
    with pytest.raises(errors.UpstreamBusyError, match="Rate limit reached"):
        await collect(client, ask(CHAT))
    await client.close()


async def test_openais_grades_promise_nothing_that_is_not_known(upstream: FakeUpstream) -> None:
    client = await open_kind(upstream, "openai")
    free = grade(client, ask(CHAT))
    constrained = grade(client, ask(CHAT, constraint=Constraint(Language.JSON_SCHEMA, "{}")))
    with pytest.raises(errors.InvalidRequestError, match="at most 5 for a text completion"):
        client.check(ask(num_candidates=6))
    with pytest.raises(errors.InvalidRequestError, match=r"decoding\.sample\.top_k"):
        client.check(ask(CHAT, top_k=5))
    with pytest.raises(errors.InvalidRequestError, match="prompt_token_ids"):
        client.check(ask(prompt=(1, 2)))
    await client.close()
    assert (free.token_ids, free.weights) == (TokenIds.NONE, WeightsOrigin.UNKNOWN)
    # The answers are the same whatever is asked, as those of raw logprobs would be.
    assert free.distribution is Distribution.RAW
    assert constrained.distribution is Distribution.UNKNOWN


@pytest.mark.parametrize("piece_bytes", PIECES)
async def test_ollamas_lines_have_texts_bytes_and_no_ids(
    upstream: FakeUpstream, piece_bytes: int | None
) -> None:
    client = await open_kind(upstream, "ollama")
    replay(upstream, get_answer("ollama", "generate"), piece_bytes)
    request = ask(temperature=0.5, top_k=9, stop=("x",))
    client.check(request)
    events = await collect(client, request)
    await client.close()
    first, second, last = get_chunks(events)
    assert (first.text, first.tokens[0].logprob, first.tokens[0].rank) == (" Paris", -0.25, 0)
    assert second.tokens[0].rank == 1
    assert (last.finish, get_end(events).num_generated_tokens) == (FinishReason.STOP, 2)
    body = upstream.get_bodies("/api/generate")[-1]
    assert (body["raw"], body["truncate"], body["shift"]) == (True, False, False)
    assert body["options"] == {
        "num_predict": 8,
        "stop": ["x"],
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 7,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "typical_p": 1.0,
        "mirostat": 0,
    }


async def test_fields_of_a_caller_are_where_ollama_reads_them(upstream: FakeUpstream) -> None:
    client = await open_kind(upstream, "ollama")
    request = ask(passed_on={"frequency_penalty": 0.5, "num_ctx": 64, "think": False})
    client.check(request)
    await collect(client, request)
    body = upstream.get_bodies("/api/generate")[-1]
    assert (body["options"]["frequency_penalty"], body["options"]["num_ctx"]) == (0.5, 64)
    assert body["think"] is False
    assert "frequency_penalty" not in body
    # Ollama passes over what it does not know, and whence's own settings are on record.
    for name, value in (("service_tier", "flex"), ("temperature", 0.125)):
        with pytest.raises(errors.InvalidRequestError, match="Ollama") as caught:
            client.check(ask(passed_on={name: value}))
        assert [violation.field for violation in caught.value.violations] == [name]
    await client.close()


async def test_fields_of_a_caller_are_where_sglang_reads_them(upstream: FakeUpstream) -> None:
    client = await open_kind(upstream, "sglang")
    request = ask(passed_on={"frequency_penalty": 0.5, "lora_path": "x"})
    client.check(request)
    await collect(client, request)
    body = upstream.get_bodies("/generate")[-1]
    assert body["sampling_params"]["frequency_penalty"] == 0.5
    assert (body["lora_path"], "frequency_penalty" in body) == ("x", False)
    with pytest.raises(errors.InvalidRequestError, match="min_p"):
        client.check(ask(passed_on={"min_p": 0.5}))
    # SGLang passes over what it does not know, on both routes.
    for prompt, name in (("Hi", "separate_reasoning"), (CHAT, "return_entropy")):
        with pytest.raises(errors.InvalidRequestError, match="it would have no effect") as caught:
            client.check(ask(prompt, passed_on={name: True}))
        assert [violation.field for violation in caught.value.violations] == [name]
    client.check(ask(CHAT, passed_on={"separate_reasoning": True}))
    client.check(ask(passed_on={"return_entropy": True}))
    await client.close()


async def test_a_chat_of_ollama_has_reasoning_and_calls_in_openais_form(
    upstream: FakeUpstream,
) -> None:
    client = await open_kind(upstream, "ollama")
    replay(upstream, get_answer("ollama", "chat"))
    chat = ChatInput(
        (
            ChatMessage("assistant", None, tool_calls=(ToolCall("f", '{"a": 1}', "c1"),)),
            ChatMessage("tool", ("one", "two"), tool_call_id="c1", name="f"),
        )
    )
    reasoning, text, call, last = get_chunks(await collect(client, ask(chat, num_candidates=None)))
    await client.close()
    assert (reasoning.reasoning, text.text) == ("hm", "Paris")
    assert call.tool_calls_json == (
        '[{"index":0,"id":"call_1","type":"function","function":'
        '{"name":"get_weather","arguments":"{\\"city\\":\\"Paris\\"}"}}]'
    )
    assert last.finish is FinishReason.LENGTH
    body = upstream.get_bodies("/api/chat")[-1]
    assert body["messages"] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "onetwo", "tool_call_id": "c1", "tool_name": "f"},
    ]


async def test_ollamas_errors_are_read_in_the_middle_and_at_the_start(
    upstream: FakeUpstream,
) -> None:
    client = await open_kind(upstream, "ollama")
    replay(upstream, get_answer("ollama", "error_middle"))
    with pytest.raises(errors.UpstreamError, match="in the middle of its answer: an error was"):
        await collect(client, ask())
    replay(upstream, get_answer("ollama", "error_model"))
    with pytest.raises(errors.UpstreamRefusedError, match="model 'x' not found"):
        await collect(client, ask())
    await client.close()


@pytest.mark.parametrize("piece_bytes", PIECES)
@pytest.mark.parametrize("name", ["generate_cumulative", "generate_incremental"])
async def test_sglangs_streams_are_the_same_in_both_forms(
    upstream: FakeUpstream, name: str, piece_bytes: int | None
) -> None:
    client = await open_kind(upstream, "sglang")
    replay(upstream, get_answer("sglang", name), piece_bytes)
    events = await collect(client, ask())
    await client.close()
    assert get_prompt(events).token_ids == (504, 7)
    chunks = get_chunks(events)
    assert [chunk.text for chunk in chunks] == [" Paris", ".", ""]
    tokens = [token for chunk in chunks for token in chunk.tokens]
    assert [(token.token_id, token.logprob, token.rank) for token in tokens] == [
        (7042, -0.25, 0),
        (30, -1.5, 1),
        (2, -0.1, 0),
    ]
    assert tokens[1].candidates is not None
    assert [(c.token_id, c.text) for c in tokens[1].candidates] == [(28, ","), (30, ".")]
    assert chunks[-1].finish is FinishReason.END_OF_SEQUENCE
    end = get_end(events)
    assert (end.num_prompt_tokens, end.num_generated_tokens) == (5, 3)
    assert (end.num_cached_prompt_tokens, end.fingerprint) == (2, "default")


async def test_a_table_that_is_repeated_in_a_chunk_of_sglang_is_left_out(
    upstream: FakeUpstream,
) -> None:
    client = await open_kind(upstream, "sglang")
    replay(upstream, get_answer("sglang", "generate_two_in_a_chunk"))
    first, last = get_chunks(await collect(client, ask()))
    assert grade(client, ask()).tables is Tables.SOME_STEPS
    await client.close()
    assert [(token.text, token.token_id) for token in first.tokens] == [(" Paris", 7042), (".", 30)]
    assert [token.logprob for token in first.tokens] == [-0.25, -1.5]
    assert first.tokens[0].candidates is not None
    assert first.tokens[1].candidates is None
    assert last.tokens[0].candidates is not None


async def test_sglangs_settings_have_its_own_names(upstream: FakeUpstream) -> None:
    client = await open_kind(upstream, "sglang")
    request = ask(
        prompt=(504, 7),
        stop_token_ids=(2,),
        constraint=Constraint(Language.REGEX, "a+"),
        logit_bias=((3, -1.5),),
    )
    client.check(request)
    chunks = get_chunks(await collect(client, request))
    await client.close()
    body = upstream.get_bodies("/generate")[-1]
    assert (body["input_ids"], body["top_logprobs_num"]) == ([504, 7], 2)
    assert body["sampling_params"] == {
        "max_new_tokens": 8,
        "min_new_tokens": 0,
        "stop_token_ids": [2],
        "ignore_eos": False,
        "n": 1,
        "repetition_penalty": 1.0,
        "logit_bias": {"3": -1.5},
        "temperature": 1.0,
        "top_k": -1,
        "top_p": 1.0,
        "min_p": 0.0,
        "sampling_seed": 7,
        "regex": "a+",
    }
    # The token that ended the sequence was asked for as a stop token.
    assert (chunks[-1].finish, chunks[-1].stop) == (FinishReason.STOP, "2")


async def test_a_chat_of_sglang_has_no_ids(upstream: FakeUpstream) -> None:
    client = await open_kind(upstream, "sglang")
    replay(upstream, get_answer("sglang", "chat"))
    first, last = get_chunks(await collect(client, ask(CHAT)))
    assert (first.tokens[0].text, first.tokens[0].token_id) == ("Paris", None)
    assert last.finish is FinishReason.END_OF_SEQUENCE
    assert grade(client, ask(CHAT)).token_ids is TokenIds.NONE
    assert grade(client, ask()).token_ids is TokenIds.SAMPLED
    assert grade(client, ask(strategy=Strategy.GREEDY)).weights is WeightsOrigin.CLAIMED
    await client.close()


async def test_a_generation_that_sglang_gives_up_fails(upstream: FakeUpstream) -> None:
    client = await open_kind(upstream, "sglang")
    replay(upstream, get_answer("sglang", "generate_abort"))
    with pytest.raises(errors.UpstreamError, match="gave up the generation: Abort before prefill"):
        await collect(client, ask())
    await client.close()


async def test_a_server_of_no_kind_is_named_with_the_routes_that_were_asked(
    upstream: FakeUpstream,
) -> None:
    with pytest.raises(errors.UpstreamError, match=r"none of /props, .*--upstream-kind"):
        await open_upstream(upstream.url)
    with pytest.raises(
        errors.ConfigurationError, match=r"llama\.cpp, ollama, openai, sglang, vllm"
    ):
        await open_upstream(upstream.url, kind="tgi")


@pytest.mark.parametrize(
    ("given", "served"),
    [
        ("", "/v1/models"),
        ("/v1", "/v1/models"),
        ("/openai", "/openai/v1/models"),
        ("/v1beta/openai", "/v1beta/openai/models"),
    ],
)
async def test_a_url_without_v1_is_tried_with_it_and_without(
    upstream: FakeUpstream, given: str, served: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    upstream.answer_json("GET", served, {"data": [{"id": "gpt-4o-mini"}]})
    client = await open_upstream(upstream.url + given)
    probed = served.removesuffix("/models")
    chat = get_answer("openai", "chat")
    replay(upstream, chat)
    upstream.answer(
        "POST", f"{probed}/chat/completions", upstream.routes["POST", chat.request["path"]]
    )
    assert (await client.describe()).kind == "openai"
    assert upstream.get_bodies(f"{probed}/chat/completions")
    await client.close()
    said = f"the upstream's API is at {upstream.url}{probed}: the URL was given without /v1"
    assert (said in caplog.text) is (given != "/v1")


async def test_a_url_at_which_no_api_is_names_both_that_were_asked(upstream: FakeUpstream) -> None:
    with pytest.raises(errors.UpstreamError, match=r"neither has http.*/team/models") as caught:
        await open_upstream(f"{upstream.url}/team")
    assert "/v1/models" in caught.value.message


@pytest.mark.parametrize(
    ("asked", "answered", "is_version"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4", "gpt-4-0613", True),
        ("gpt-4", "gpt-4o", False),
        ("gpt-4o", "gpt-4", False),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "gpt-4o-mini-2024-07-18", False),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022", True),
        ("openai/gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "openai/gpt-4o", True),
        ("openai/gpt-4o", "azure/gpt-4o", False),
        ("gemini-1.5-pro", "gemini-1.5-pro-002", True),
    ],
)
def test_only_a_dated_version_stands_for_the_model_that_was_asked_for(
    asked: str, answered: str, is_version: bool
) -> None:
    progress = Progress(ask(), "the upstream", asked, is_model_exact=False)
    if is_version:
        progress.check_model(answered)
        return
    with pytest.raises(errors.UpstreamModelError):
        progress.check_model(answered)


async def test_a_server_with_a_version_is_no_vllm_unless_its_models_say_so(
    upstream: FakeUpstream,
) -> None:
    upstream.answer_json("GET", "/version", {"version": "1.2"})
    for owner, kind in (("someone", "openai"), ("vllm", "vllm")):
        models = {"data": [{"id": "smol", "owned_by": owner}]}
        upstream.answer_json("GET", "/v1/models", models)
        connection = Connection(parse_address(f"{upstream.url}/v1"), ApiKey(None), WireLimits())
        assert await find_kind(connection) == kind
        await connection.close()


async def test_a_server_that_still_loads_its_model_is_busy(upstream: FakeUpstream) -> None:
    loading = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}
    for path in ("/props", "/v1/models", "/version", "/api/version", "/get_model_info"):
        upstream.answer_json("GET", path, loading, 503)
    with pytest.raises(errors.UpstreamBusyError, match="Loading model"):
        await open_upstream(upstream.url)
