"""Answers that real servers gave are read as a naive reading of the same bytes has them."""

import json
from typing import Any

import pytest
from fake_upstream import FakeUpstream, RecordedAnswer, read_answers, replay, serving
from upstream_cases import ask, collect, get_chunks, get_end

from whence_server.domain.chat import ChatInput, ChatMessage
from whence_server.domain.observation import Distribution
from whence_server.engines.upstream.adapter import Found
from whence_server.engines.upstream.client import UpstreamClient
from whence_server.engines.upstream.exchange import (
    UpstreamDescription,
    UpstreamEvent,
    UpstreamRequest,
)
from whence_server.engines.upstream.opening import ADAPTERS
from whence_server.engines.upstream.wire.address import parse_address
from whence_server.engines.upstream.wire.api_key import ApiKey
from whence_server.engines.upstream.wire.connection import Connection, WireLimits

KINDS = ("llama.cpp", "vllm")
STREAMS = [
    pytest.param(kind, answer, id=f"{kind}-{answer.name}")
    for kind in KINDS
    for answer in read_answers(kind)
    if answer.status == 200 and (answer.request["body"] or {}).get("stream")
]
"""Streamed answers; whence asks for no others."""


def has_ids(kind: str, answer: RecordedAnswer) -> bool:
    """Return whether whence's adapter of the kind asks for such an answer."""
    body = answer.request["body"]
    if kind == "vllm":
        return bool(body.get("return_token_ids"))
    if answer.request["path"] == "/completion":
        return not body.get("post_sampling_probs")
    return "chat" in answer.request["path"] and bool(body.get("logprobs"))


def make_request(body: dict[str, Any]) -> UpstreamRequest:
    """Return a request that would have been sent with the recorded body's settings."""
    if "messages" in body:
        messages = tuple(
            ChatMessage(message["role"], message["content"]) for message in body["messages"]
        )
        tools_json = json.dumps(body["tools"]) if "tools" in body else ""
        prompt: Any = ChatInput(messages, tools_json=tools_json)
        wants = body.get("logprobs")
        num_candidates = body.get("top_logprobs", 0) if wants else None
    else:
        prompt = body["prompt"]
        prompt = tuple(prompt) if isinstance(prompt, list) else prompt
        num_candidates = body.get("n_probs", body.get("logprobs")) or None
    stop = tuple(body.get("stop") or ())
    n = body.get("n", body.get("n_cmpl", 1))
    return ask(prompt, num_candidates, stop=stop, num_return_sequences=n)


def read_naively(answer: RecordedAnswer) -> list[dict[str, Any]]:
    """Return all JSON documents of a stream of server-sent events."""
    lines = answer.body.decode().split("\n")
    data = [line[len("data: ") :] for line in lines if line.startswith("data: ")]
    return [json.loads(text) for text in data if text != "[DONE]"]


def list_choices(documents: list[dict[str, Any]], index: int) -> list[dict[str, Any]]:
    """Return the pieces of a sequence: choices, or whole documents of llama.cpp's own route."""
    return [
        choice
        for document in documents
        for choice in document.get("choices", [document])
        if choice.get("index", 0) == index
    ]


def join_text(choices: list[dict[str, Any]]) -> str:
    return "".join(
        choice.get("content") or choice.get("text") or choice.get("delta", {}).get("content") or ""
        for choice in choices
    )


def list_logprobs(choices: list[dict[str, Any]]) -> list[float]:
    """Return the chosen tokens' logprobs."""
    values: list[float] = []
    for choice in choices:
        logprobs = choice.get("logprobs") or {}
        entries = choice.get("completion_probabilities") or logprobs.get("content") or []
        values += [entry["logprob"] for entry in entries]
        values += logprobs.get("token_logprobs") or []
    return values


def list_ids(choices: list[dict[str, Any]]) -> list[int]:
    ids: list[int] = []
    for choice in choices:
        logprobs = choice.get("logprobs") or {}
        told = choice.get("tokens") or choice.get("token_ids")
        ids += told or [entry["id"] for entry in logprobs.get("content") or [] if "id" in entry]
    return ids


async def ask_replayed(
    kind: str, upstream: FakeUpstream, answer: RecordedAnswer, request: UpstreamRequest
) -> list[UpstreamEvent]:
    """Return the parts of a recorded answer, whatever it is asked."""
    adapter = ADAPTERS[kind]()
    connection = Connection(parse_address(upstream.url), ApiKey(None), WireLimits())
    client = UpstreamClient(adapter, connection, "")
    model = answer.request["body"].get("model") or read_naively(answer)[-1].get("model", "")
    client._found = make_found(kind, model)
    replay(upstream, answer, piece_bytes=13)
    events = await collect(client, request)
    await client.close()
    return events


def make_found(kind: str, model: str) -> Found:
    profile = ADAPTERS[kind]().profile
    description = UpstreamDescription(kind, "", model, 2048, profile.max_candidates, True)
    return Found(description, Distribution.RAW)


@pytest.mark.parametrize(("kind", "answer"), [p for p in STREAMS if has_ids(*p.values)])
async def test_an_answer_has_the_texts_ids_logprobs_and_ends_of_its_bytes(
    kind: str, answer: RecordedAnswer
) -> None:
    request = make_request(answer.request["body"])
    async with serving() as upstream:
        events = await ask_replayed(kind, upstream, answer, request)
    documents = read_naively(answer)
    num_generated = 0
    for index in range(request.decoding.num_return_sequences):
        choices = list_choices(documents, index)
        chunks = get_chunks(events, index)
        assert "".join(chunk.text for chunk in chunks) == join_text(choices)
        tokens = [token for chunk in chunks for token in chunk.tokens]
        num_generated += len(tokens)
        shown = [token for token in tokens if token.token_id is not None]
        assert [token.token_id for token in shown] == list_ids(choices)
        if request.num_candidates is not None:
            assert [token.logprob for token in shown] == list_logprobs(choices)
            assert all(len(token.candidates or ()) == request.num_candidates for token in shown)
        assert [chunk.finish is not None for chunk in chunks].count(True) == 1
        assert chunks[-1].finish is not None
    # The record has a step for every token that the server counts.
    assert get_end(events).num_generated_tokens == num_generated


@pytest.mark.parametrize(
    ("kind", "answer"),
    [p for p in STREAMS if p.values[1].request["path"].startswith("/v1/")],
)
async def test_a_real_server_is_read_as_any_server_with_openais_api(
    kind: str, answer: RecordedAnswer
) -> None:
    del kind
    body = answer.request["body"]
    if "messages" not in body and isinstance(body.get("logprobs"), int) and body["logprobs"] > 5:
        pytest.skip("more candidates than OpenAI's completions have")
    request = make_request(body)
    async with serving() as upstream:
        events = await ask_replayed("openai", upstream, answer, request)
    documents = read_naively(answer)
    for index in range(request.decoding.num_return_sequences):
        choices = list_choices(documents, index)
        chunks = get_chunks(events, index)
        assert "".join(chunk.text for chunk in chunks) == join_text(choices)
        assert chunks[-1].finish is not None
        if request.num_candidates is not None:
            tokens = [token for chunk in chunks for token in chunk.tokens]
            assert [token.logprob for token in tokens] == list_logprobs(choices)
