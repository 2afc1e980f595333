"""OpenAI's API over an upstream: what is handed through, and how its answers look."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from scripted_upstream import (
    END,
    USUAL,
    UpstreamService,
    chunk,
    finish,
    serve,
    token,
)

from whence_server.domain.decoding import FinishReason
from whence_server.domain.errors import (
    UpstreamAwayError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamRefusedError,
)
from whence_server.domain.limits import Limits
from whence_server.engines.upstream.exchange import UpstreamChunk, UpstreamToken
from whence_server.http.openai.parameters import Parameters
from whence_server.http.openai.requests import read_tools
from whence_server.http.openai.routes import list_routes, make_not_found
from whence_server.http.openai.running import Front
from whence_server.http.server import HttpServer
from whence_server.rpc.calls import CallLog
from whence_server.rpc.serving import Serving

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@asynccontextmanager
async def front(
    tmp_path: Path, *scripts: list[object], **changes: object
) -> AsyncIterator["Asked"]:
    """Serve OpenAI's API over a fake upstream, of whose description fields may differ."""
    service = await serve(tmp_path, scripts or (USUAL,), **changes)
    serving = Serving("upstream", service.journal)
    serving.set_ready(service.model, None, service.generations)
    calls = CallLog(lambda call: None)
    routes = list_routes(Front(serving, Limits(), 1 << 20, 0.0), calls)
    not_found = make_not_found(calls)
    http = HttpServer(routes, "127.0.0.1", 0, not_found, max_connections=100)
    await http.start()
    try:
        async with aiohttp.ClientSession(http.url) as session:
            yield Asked(service, session, http.url)
    finally:
        await http.close()
        await service.close()


class Asked:
    """Client of the served API."""

    def __init__(self, service: UpstreamService, session: aiohttp.ClientSession, url: str) -> None:
        self.service = service
        self.session = session
        self.url = url

    async def get(self, path: str) -> dict[str, Any]:
        async with self.session.get(path) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def post(self, path: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
        async with self.session.post(path, json=body) as answer:
            assert answer.status == status, await answer.text()
            self.headers = answer.headers
            return await answer.json()

    async def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        async with self.session.post(path, json={**body, "stream": True}) as answer:
            lines = (await answer.text()).splitlines()
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert data[-1] == "[DONE]"
        return [json.loads(line) for line in data[:-1]]


async def test_unknown_parameters_are_handed_through_and_on_record(tmp_path: Path) -> None:
    given = {"dry_multiplier": 0.5, "frequency_penalty": 0.25, "tool_choice": "required"}
    async with front(tmp_path) as asked:
        answer = await asked.post("/v1/chat/completions", {**CHAT, **given})
        (sent,) = asked.service.upstream.requests
        assert sent.passed_on == given
        assert sent.prompt.messages[0].content == "Hi"
        recorded = await asked.service.read(asked.headers["whence-generation-id"])
        assert json.loads(recorded.started.upstream_parameters_json) == given
        choice = answer["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (" a b", "length")
        assert answer["system_fingerprint"] == "fp_1"
        assert answer["usage"]["prompt_tokens"] == 3


async def test_what_vllm_has_added_to_the_api_is_applied(tmp_path: Path) -> None:
    async with front(tmp_path) as asked:
        await asked.post("/v1/chat/completions", {**CHAT, "ignore_eos": True})
        await asked.post("/v1/completions", {"prompt": "Hi", "ignore_eos": True, "min_tokens": 2})
        for sent in asked.service.upstream.requests:
            assert sent.decoding.ignore_eos
            assert sent.passed_on == {}


def test_a_choice_of_tools_needs_an_upstream_that_reads_the_calls() -> None:
    body = {"tools": [{"type": "function"}], "tool_choice": "required"}
    whole = Parameters(body, passes_on=True, passes_on_tools=True)
    assert read_tools(whole) == body["tools"]
    assert whole.passed_on == {"tool_choice": "required"}
    # Where whence renders conversations, the upstream would not see the tools.
    partly = Parameters(body, passes_on=True)
    read_tools(partly)
    assert [fault.field for fault in partly.violations] == ["tool_choice"]
    assert partly.passed_on == {}


async def test_without_max_tokens_the_upstreams_own_default_counts(tmp_path: Path) -> None:
    async with front(tmp_path) as asked:
        await asked.post("/v1/chat/completions", {"messages": CHAT["messages"]})
        assert asked.service.upstream.requests[0].decoding.max_new_tokens == 0


async def test_logprobs_have_the_texts_that_the_upstream_told(tmp_path: Path) -> None:
    script = [chunk(token(" é")), chunk(UpstreamToken(" b")), finish(), END]
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    async with front(tmp_path, script) as asked:
        answer = await asked.post("/v1/chat/completions", body)
        first, second = answer["choices"][0]["logprobs"]["content"]
        assert (first["token"], first["logprob"]) == (" é", -0.5)
        assert first["bytes"] == list(" é".encode())
        assert [it["token"] for it in first["top_logprobs"]] == [" é", "?"]
        # OpenAI's number for a logprob that is not known.
        assert (second["logprob"], second["top_logprobs"]) == (-9999.0, [])
        chunks = await asked.stream("/v1/chat/completions", body)
        texts = [it["choices"][0]["delta"].get("content") for it in chunks if it["choices"]]
        assert "".join(filter(None, texts)) == " é b"


async def test_completions_stream_the_upstreams_text(tmp_path: Path) -> None:
    body = {"prompt": "Hi", "max_tokens": 4, "stream_options": {"include_usage": True}}
    async with front(tmp_path) as asked:
        chunks = await asked.stream("/v1/completions", body)
        assert "".join(it["choices"][0]["text"] for it in chunks if it["choices"]) == " a b"
        assert chunks[-1]["usage"]["completion_tokens"] == 2
        assert chunks[-1]["system_fingerprint"] == "fp_1"


async def test_responses_have_no_number_of_cached_tokens_where_none_was_told(
    tmp_path: Path,
) -> None:
    async with front(tmp_path) as asked:
        answer = await asked.post("/v1/responses", {"input": "Hi"})
        assert answer["output"][0]["content"][0]["text"] == " a b"
        assert answer["usage"]["input_tokens"] == 3
        assert answer["usage"]["input_tokens_details"] is None


async def test_a_context_that_was_not_told_has_no_length(tmp_path: Path) -> None:
    async with front(tmp_path, max_context_length=None) as asked:
        (model,) = (await asked.get("/v1/models"))["data"]
        assert model["max_model_len"] is None


async def test_tool_calls_of_the_upstream_are_the_answers(tmp_path: Path) -> None:
    function = {"name": "weather", "arguments": "{}"}
    calls = json.dumps([{"index": 0, "id": "c1", "function": function}])
    script = [
        UpstreamChunk(0, "", tool_calls_json=calls),
        finish(0, FinishReason.END_OF_SEQUENCE),
        END,
    ]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    async with front(tmp_path, script) as asked:
        answer = await asked.post("/v1/chat/completions", {**CHAT, "tools": tools})
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        assert choice["message"]["tool_calls"] == [
            {"id": "c1", "type": "function", "function": function}
        ]


REASONED: list[object] = [
    UpstreamChunk(0, "", (UpstreamToken("Hm", 4),), reasoning="Hm"),
    UpstreamChunk(0, "", reasoning=", well."),
    chunk(token(" a", 5)),
    finish(),
    END._replace(num_generated_tokens=3),
]


async def test_reasoning_that_the_upstream_tells_apart_is_on_record_and_in_a_chat(
    tmp_path: Path,
) -> None:
    async with front(tmp_path, REASONED) as asked:
        answer = await asked.post("/v1/chat/completions", CHAT)
        message = answer["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm, well.", " a")
        assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
        recorded = await asked.service.read(asked.headers["whence-generation-id"])
        assert [step.reasoning_text for step in recorded.steps] == ["Hm", ", well.", ""]
        assert recorded.finished.sequences[0].reasoning.text == "Hm, well."

        chunks = await asked.stream("/v1/chat/completions", CHAT)
        deltas = [it["choices"][0]["delta"] for it in chunks]
        assert [delta.get("reasoning_content") for delta in deltas] == [
            *(None, "Hm", ", well.", None, None),
        ]
        assert "".join(delta.get("content", "") for delta in deltas) == " a"


async def test_reasoning_tokens_are_not_guessed_from_pieces_of_several(tmp_path: Path) -> None:
    pieces: list[object] = [
        UpstreamChunk(0, "", reasoning="Hm, well."),
        UpstreamChunk(0, " a", ()),
        finish(),
        END._replace(num_generated_tokens=9),
    ]
    async with front(tmp_path, pieces) as asked:
        answer = await asked.post("/v1/chat/completions", CHAT)
        assert answer["choices"][0]["message"]["reasoning_content"] == "Hm, well."
        assert answer["usage"]["completion_tokens"] == 9
        assert "completion_tokens_details" not in answer["usage"]
        whole = await asked.post("/v1/responses", {"input": "Hi"})
        assert whole["usage"]["output_tokens_details"] is None


async def test_reasoning_is_an_item_of_a_response(tmp_path: Path) -> None:
    async with front(tmp_path, REASONED) as asked:
        whole = await asked.post("/v1/responses", {"input": "Hi"})
        reasoning, message = whole["output"]
        assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm, well."}]
        assert message["content"][0]["text"] == " a"
        assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
        client = openai.AsyncOpenAI(
            base_url=f"{asked.url}/v1", api_key="none", max_retries=0, timeout=30
        )
        # The client's own accumulation checks the order of the events.
        async with client, client.responses.stream(model="smol", input="Hi") as stream:
            events = [event async for event in stream]
        kinds = [event.type.removeprefix("response.") for event in events]
        assert kinds == [
            *("created", "in_progress"),
            *("output_item.added", "content_part.added"),
            *("reasoning_text.delta", "reasoning_text.delta"),
            *("reasoning_text.done", "content_part.done", "output_item.done"),
            *("output_item.added", "content_part.added", "output_text.delta"),
            *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
        ]
        streamed = events[-1].response.output
        assert [item.type for item in streamed] == ["reasoning", "message"]
        # Sent back, the items of one turn are one message.
        items = [
            {"role": "user", "content": "Hi"},
            *whole["output"],
            {"role": "user", "content": "?"},
        ]
        await asked.post("/v1/responses", {"input": items})
        messages = asked.service.upstream.requests[-1].prompt.messages
        assert [it.role for it in messages] == ["user", "assistant", "user"]
        assert (messages[1].content, messages[1].reasoning_content) == ((" a",), "Hm, well.")


async def test_responses_hand_unknown_parameters_through(tmp_path: Path) -> None:
    body = {
        "input": "Hi",
        "dry_multiplier": 0.5,
        "reasoning": {"effort": "low"},
        "text": {"verbosity": "low"},
        "tools": [{"type": "function", "name": "weather"}],
        "tool_choice": {"type": "function", "name": "weather"},
    }
    given = {
        "dry_multiplier": 0.5,
        "reasoning_effort": "low",
        "verbosity": "low",
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }
    async with front(tmp_path) as asked:
        await asked.post("/v1/responses", body)
        assert asked.service.upstream.requests[0].passed_on == given
        recorded = await asked.service.read(asked.headers["whence-generation-id"])
        assert json.loads(recorded.started.upstream_parameters_json) == given
        # What the API itself defines and nobody here offers is no field of the upstream.
        answer = await asked.post("/v1/responses", {"input": "Hi", "background": True}, 400)
        assert answer["error"]["param"] == "background"


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (UpstreamAwayError("it is gone", 7.0), 503, "7"),
        (UpstreamBusyError("it is full", 7.0), 429, "7"),
        (UpstreamRefusedError("max_tokens is too large"), 400, None),
    ],
)
async def test_errors_of_the_upstream_are_errors_of_the_answer(
    tmp_path: Path, error: UpstreamError, status: int, retry_after: str | None
) -> None:
    async with front(tmp_path, [error]) as asked:
        for streams in (False, True):
            answer = await asked.post("/v1/chat/completions", CHAT | {"stream": streams}, status)
            assert error.message in answer["error"]["message"]
            assert asked.headers.get("Retry-After") == retry_after


async def test_a_refusal_that_comes_late_is_an_event_of_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whence_server.http.openai.answers._HELD_S", 0.0)
    async with front(tmp_path, [UpstreamBusyError("it is full", 7.0)]) as asked:
        body = CHAT | {"stream": True}
        async with asked.session.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
            assert "it is full" in await answer.text()
