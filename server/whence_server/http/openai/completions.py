"""POST /v1/completions: text that continues a prompt, without a chat template."""

from collections.abc import Sequence
from typing import Any

import orjson
from aiohttp import web

from whence.v1.generation_pb2 import FinishReason, GenerationFinished
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
from whence_server.http.openai.parameters import Parameters
from whence_server.http.openai.requests import (
    Wanted,
    make_request,
    read_model,
    read_options,
    read_parameters,
    read_stream,
)
from whence_server.http.openai.running import Event, Front
from whence_server.http.streams import make_event
from whence_server.text.tokenizer import TextTokenizer

_DEFAULT_MAX_TOKENS = 16
"""The API's own default."""
_MAX_LOGPROBS = 20


class Completions:
    """Handler of the route."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def answer(self, exchange: Exchange) -> web.StreamResponse:
        """Continue the prompt."""
        body = await read_json_object(exchange.request, self._front.max_body_bytes)
        wanted = self._read(read_parameters(body, self._front.serving))
        model, tokenizer = await start_generation(self._front, exchange, wanted)
        writer = _Writer(exchange, wanted, model, tokenizer)
        return await send_answer(self._front, exchange, wanted, writer)

    def _read(self, parameters: Parameters) -> Wanted:
        prompt = _read_prompt(parameters)
        n = parameters.take_integer("n", 1)
        max_tokens = parameters.take_integer("max_tokens", 1)
        options = {
            **read_model(parameters, self._front.serving),
            "max_new_tokens": _DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
            "stop": parameters.take_texts("stop") or None,
            "n": n,
            # As vLLM has it.
            "add_special_tokens": parameters.take("add_special_tokens"),
            **read_options(parameters),
        }
        num_top = parameters.take_integer("logprobs", 0, _MAX_LOGPROBS)
        streams, includes_usage = read_stream(parameters)
        parameters.expect("echo", False)
        parameters.expect("suffix", "")
        parameters.expect("best_of", n or 1)
        request = make_request(parameters, prompt, options, self._front.limits, num_top)
        return Wanted(request, streams, includes_usage, num_top)


def _read_prompt(parameters: Parameters) -> str | list[int] | None:
    """Take the prompt: text or token ids, or a list that holds one of them."""
    prompt = parameters.take("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(type(it) is int and 0 <= it < 2**32 for it in prompt):
        return prompt
    parameters.add_fault("prompt", "must be one text or one list of token ids")
    return None


class _Writer:
    """Writer of one request's answer."""

    def __init__(
        self, exchange: Exchange, wanted: Wanted, model: ModelInfo, tokenizer: TextTokenizer | None
    ) -> None:
        self._wanted = wanted
        self._tokenizer = tokenizer
        self._num_characters: dict[int, int] = {}
        self._head = {
            "id": f"cmpl-{exchange.generation_id}",
            "object": "text_completion",
            "created": exchange.time_ns // 10**9,
            "model": model.name,
            "system_fingerprint": make_fingerprint(model),
        }

    def make_document(self, events: Sequence[Event]) -> dict[str, Any]:
        """Return the whole answer."""
        finished = events[-1]
        assert isinstance(finished, GenerationFinished)  # noqa: S101 - read_finished says so
        choices = [
            {
                "index": result.sequence_index,
                "text": result.text,
                "logprobs": self._make_logprobs(select_steps(events, result.sequence_index)),
                "finish_reason": get_finish_reason(result.finish_reason),
            }
            for result in finished.sequences
        ]
        head = update_fingerprint(self._head, finished)
        return {**head, "choices": choices, "usage": make_usage(finished)}

    def make_events(self, events: Sequence[Event]) -> list[bytes]:
        """Return the chunks of the next events."""
        written = []
        for event in events:
            if isinstance(event, Step):
                if event.text or self._wanted.num_top_logprobs is not None:
                    logprobs = self._make_logprobs([event])
                    written.append(self._make_chunk(event.sequence_index, event.text, logprobs))
            elif isinstance(event, GenerationFinished):
                written += self._make_last_chunks(event)
        return written

    def _make_last_chunks(self, finished: GenerationFinished) -> list[bytes]:
        written = [
            self._make_chunk(result.sequence_index, "", None, result.finish_reason)
            for result in finished.sequences
        ]
        if self._wanted.includes_usage:
            head = update_fingerprint(self._head, finished)
            usage = {**head, "choices": [], "usage": make_usage(finished)}
            written.append(make_event(orjson.dumps(usage)))
        return [*written, DONE]

    def _make_chunk(
        self,
        index: int,
        text: str,
        logprobs: dict[str, Any] | None,
        reason: FinishReason.ValueType | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": None if reason is None else get_finish_reason(reason),
        }
        chunk: dict[str, Any] = {**self._head, "choices": [choice]}
        if self._wanted.includes_usage:
            chunk["usage"] = None
        return make_event(orjson.dumps(chunk))

    def _make_logprobs(self, steps: Sequence[Step]) -> dict[str, Any] | None:
        """Return logprobs in this route's form: parallel lists, and likeliest tokens by text."""
        num_top = self._wanted.num_top_logprobs
        if num_top is None:
            return None
        tokens = [make_logprob(step, self._tokenizer, num_top) for step in steps]
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [_merge(token["top_logprobs"]) for token in tokens],
            "text_offset": [self._count_characters(step) for step in steps],
        }

    def _count_characters(self, step: Step) -> int:
        """Return the characters of the sequence's text before a step; add the step's own."""
        before = self._num_characters.get(step.sequence_index, 0)
        self._num_characters[step.sequence_index] = before + len(step.text)
        return before


def _merge(top: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return logprobs by text; of two tokens with one text the likelier one's."""
    return {token["token"]: token["logprob"] for token in reversed(top)}
