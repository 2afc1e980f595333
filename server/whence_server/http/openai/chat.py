"""POST /v1/chat/completions."""

from collections.abc import Sequence
from typing import Any

import orjson
from aiohttp import web

from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted, SequenceResult
from whence.v1.step_pb2 import Step
from whence_server.domain.model import ModelInfo
from whence_server.http.bodies import read_json_object
from whence_server.http.exchange import Exchange
from whence_server.http.openai.answers import send_answer, start_generation
from whence_server.http.openai.outcome import (
    DONE,
    get_finish_reason,
    make_fingerprint,
    make_logprob,
    make_usage,
    select_steps,
    update_fingerprint,
)
from whence_server.http.openai.output_parts import (
    SequenceParts,
    count_reasoning_tokens,
    get_content,
    make_calls,
)
from whence_server.http.openai.parameters import Parameters
from whence_server.http.openai.reasoning import Divided
from whence_server.http.openai.requests import (
    Wanted,
    make_request,
    read_model,
    read_options,
    read_parameters,
    read_schema,
    read_stream,
    read_tools,
    read_top_logprobs,
)
from whence_server.http.openai.running import Event, Front
from whence_server.http.streams import make_event
from whence_server.text.tokenizer import TextTokenizer


class ChatCompletions:
    """Handler of the route."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """Generate the assistant's message."""
        body = await read_json_object(exchange.request, self._front.max_body_bytes)
        wanted = self._read(read_parameters(body, self._front.serving))
        model, tokenizer = await start_generation(self._front, exchange, wanted)
        writer = _Writer(exchange, wanted, model, tokenizer)
        return await send_answer(self._front, exchange, wanted, writer)

    def _read(self, parameters: Parameters) -> Wanted:
        options = {
            **read_model(parameters, self._front.serving),
            "messages": parameters.take_list("messages"),
            "tools": read_tools(parameters),
            "json_schema": read_schema(
                parameters, "response_format", parameters.take("response_format")
            ),
            "max_new_tokens": _read_max_tokens(parameters),
            "stop": parameters.take_texts("stop") or None,
            "n": parameters.take_integer("n", 1),
            **read_options(parameters),
        }
        num_top = read_top_logprobs(
            parameters, "top_logprobs", wanted=parameters.take_flag("logprobs")
        )
        streams, includes_usage = read_stream(parameters)
        _refuse_what_is_not_offered(parameters)
        request = make_request(parameters, None, options, self._front.limits, num_top)
        return Wanted(request, streams, includes_usage, num_top)


def _read_max_tokens(parameters: Parameters) -> int | None:
    """Take the bound of new tokens under its two names."""
    older = parameters.take_integer("max_tokens", 1)
    newer = parameters.take_integer("max_completion_tokens", 1)
    if older is not None and newer is not None and older != newer:
        parameters.add_fault("max_tokens", f"is {older}, and max_completion_tokens is {newer}")
    return older if newer is None else newer


def _refuse_what_is_not_offered(parameters: Parameters) -> None:
    parameters.expect("modalities", ["text"])
    parameters.expect("store", False)
    for name in ("audio", "prediction", "web_search_options"):
        parameters.expect(name)
    for name in ("reasoning_effort", "verbosity"):
        parameters.pass_on(name)


def _make_message(result: SequenceResult) -> dict[str, Any]:
    content: str | None = get_content(result)
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if result.reasoning.text:
        message["content"] = content or None
        # No field of OpenAI's own; vLLM, llama.cpp, SGLang and DeepSeek have given it this name.
        message["reasoning_content"] = result.reasoning.text
    if result.tool_calls:
        message["content"] = (content or "").strip() or None
        message["tool_calls"] = make_calls(result)
    return message


def _get_finish_reason(result: SequenceResult) -> str:
    reason = get_finish_reason(result.finish_reason)
    return "tool_calls" if result.tool_calls and reason == "stop" else reason


class _Writer:
    """Writer of one request's answer."""

    def __init__(
        self, exchange: Exchange, wanted: Wanted, model: ModelInfo, tokenizer: TextTokenizer | None
    ) -> None:
        self._wanted = wanted
        self._tokenizer = tokenizer
        self._parts: list[SequenceParts] = []
        self._head = {
            "id": f"chatcmpl-{exchange.generation_id}",
            "object": "chat.completion.chunk" if wanted.streams else "chat.completion",
            "created": exchange.time_ns // 10**9,
            "model": model.name,
            "system_fingerprint": make_fingerprint(model),
        }

    def make_document(self, events: Sequence[Event]) -> dict[str, Any]:
        """Return the whole answer."""
        started, finished = events[0], events[-1]
        assert isinstance(started, GenerationStarted)  # noqa: S101 - read_finished says so
        assert isinstance(finished, GenerationFinished)  # noqa: S101 - read_finished says so
        self._begin(started)
        for step in events:
            if isinstance(step, Step):
                self._parts[step.sequence_index].push(step)
        choices = [
            {
                "index": result.sequence_index,
                "message": _make_message(result),
                "logprobs": self._make_logprobs(select_steps(events, result.sequence_index)),
                "finish_reason": _get_finish_reason(result),
            }
            for result in finished.sequences
        ]
        head = update_fingerprint(self._head, finished)
        return {**head, "choices": choices, "usage": self._make_usage(finished)}

    def make_events(self, events: Sequence[Event]) -> list[bytes]:
        """Return the chunks of the next events."""
        written = []
        for event in events:
            if isinstance(event, Step):
                parts = self._parts[event.sequence_index].push(event)
                if any(parts) or self._wanted.num_top_logprobs is not None:
                    written.append(self._make_step(event, parts))
            elif isinstance(event, GenerationStarted):
                self._begin(event)
                written += self._make_first_chunks()
            else:
                written += self._make_last_chunks(event)
        return written

    def _begin(self, started: GenerationStarted) -> None:
        """Begin the parts of all sequences."""
        num_sequences = started.effective_decoding.num_return_sequences or 1
        self._parts = [SequenceParts(started.chat, self._tokenizer) for _ in range(num_sequences)]

    def _make_first_chunks(self) -> list[bytes]:
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._make_chunk(index, delta) for index in range(len(self._parts))]

    def _make_step(self, step: Step, parts: Divided) -> bytes:
        delta = _make_delta(parts) or {"content": ""}
        return self._make_chunk(step.sequence_index, delta, self._make_logprobs([step]))

    def _make_last_chunks(self, finished: GenerationFinished) -> list[bytes]:
        written = []
        for result in finished.sequences:
            index = result.sequence_index
            delta = _make_delta(self._parts[index].finish(result))
            if any(text.strip() for text in delta.values()):
                written.append(self._make_chunk(index, delta))
            calls = [{"index": at, **call} for at, call in enumerate(make_calls(result))]
            if calls:
                written.append(self._make_chunk(index, {"tool_calls": calls}))
            reason = _get_finish_reason(result)
            written.append(self._make_chunk(index, {}, finish_reason=reason))
        if self._wanted.includes_usage:
            head = update_fingerprint(self._head, finished)
            usage: dict[str, Any] = {**head, "choices": [], "usage": self._make_usage(finished)}
            written.append(make_event(orjson.dumps(usage)))
        return [*written, DONE]

    def _make_chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._wanted.includes_usage:
            chunk["usage"] = None
        return make_event(orjson.dumps(chunk))

    def _make_usage(self, finished: GenerationFinished) -> dict[str, Any]:
        return make_usage(finished, count_reasoning_tokens(self._parts, finished) or 0)

    def _make_logprobs(self, steps: Sequence[Step]) -> dict[str, Any] | None:
        num_top = self._wanted.num_top_logprobs
        if num_top is None:
            return None
        content = [make_logprob(step, self._tokenizer, num_top) for step in steps]
        return {"content": content, "refusal": None}


def _make_delta(parts: Divided) -> dict[str, str]:
    """Return the parts that are there."""
    named = {"reasoning_content": parts.reasoning, "content": parts.content}
    return {name: text for name, text in named.items() if text}
