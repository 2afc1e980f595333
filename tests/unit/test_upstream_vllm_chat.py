"""Chats of vLLM's server: text, ids, tables, reasoning and tool calls."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_upstream import FakeUpstream, make_events
from fake_vllm import END, serving_vllm
from upstream_cases import CHAT, ask, collect, get_chunks, get_prompt

from whence_server.domain.chat import ChatInput, ChatMessage, ToolCall
from whence_server.domain.decoding import FinishReason
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
