"""Answers of the Responses API: a response and its items, whole or in events."""

from collections.abc import Mapping, Sequence
from typing import Any

from whence.v1.generation_pb2 import (
    ChatRecord,
    FinishReason,
    GenerationFinished,
    GenerationStarted,
    SequenceResult,
)
from whence.v1.step_pb2 import Step
from whence_server.domain.model import ModelInfo
from whence_server.http.exchange import Exchange
from whence_server.http.openai.outcome import make_logprob, make_usage
from whence_server.http.openai.output_parts import (
    SequenceParts,
    count_reasoning_tokens,
    get_content,
)
from whence_server.http.openai.requests import Wanted
from whence_server.http.openai.response_items import (
    EventWriter,
    make_call_items,
    make_message,
    make_reasoning,
    make_text_part,
)
from whence_server.http.openai.running import Event
from whence_server.text.tokenizer import TextTokenizer


class ResponseWriter:
    """Writer of one request's answer: reasoning, at most one message, then the tool calls."""

    def __init__(
        self,
        exchange: Exchange,
        wanted: Wanted,
        model: ModelInfo,
        tokenizer: TextTokenizer | None,
        echoed: Mapping[str, Any],
    ) -> None:
        self._wanted = wanted
        self._tokenizer = tokenizer
        self._parts = SequenceParts(ChatRecord(), tokenizer)
        self._generation_id = exchange.generation_id
        self._events = EventWriter()
        self._reasoning = ""
        self._reasoning_is_open = self._has_reasoning = self._has_message = False
        self._logprobs: list[dict[str, Any]] = []
        self._head = {
            "id": f"resp_{exchange.generation_id}",
            "object": "response",
            "created_at": exchange.time_ns // 10**9,
            "model": model.name,
            "error": None,
            "incomplete_details": None,
            **echoed,
        }

    def make_document(self, events: Sequence[Event]) -> dict[str, Any]:
        """Return the whole answer."""
        for event in events:
            if isinstance(event, GenerationStarted):
                self._parts = SequenceParts(event.chat, self._tokenizer)
            elif isinstance(event, Step):
                self._parts.push(event)
                self._note_logprobs(event)
        finished = events[-1]
        assert isinstance(finished, GenerationFinished)  # noqa: S101 - read_finished says so
        result = finished.sequences[0]
        self._reasoning, content = result.reasoning.text, get_content(result)
        self._has_reasoning = bool(self._reasoning)
        self._has_message = bool(content.strip()) or not (result.tool_calls or self._has_reasoning)
        return self._make_response(finished)

    def make_events(self, events: Sequence[Event]) -> list[bytes]:
        """Return the events of the next events of the generation."""
        written = []
        for event in events:
            if isinstance(event, Step):
                reasoning, text = self._parts.push(event)
                logprobs = self._note_logprobs(event)
                written += self._write_reasoning(reasoning) + self._write_text(text, logprobs)
            elif isinstance(event, GenerationStarted):
                self._parts = SequenceParts(event.chat, self._tokenizer)
                response = {**self._head, "status": "in_progress", "output": [], "usage": None}
                for name in ("response.created", "response.in_progress"):
                    written.append(self._events.write(name, response=response))
            else:
                written += self._make_last_events(event)
        return written

    def _write_reasoning(self, text: str) -> list[bytes]:
        # Items have one order: what an upstream reasons after its message began is on record alone.
        if not text or self._has_message:
            return []
        written, self._reasoning = [], self._reasoning + text
        item_id = f"rs_{self._generation_id}"
        if not self._has_reasoning:
            self._has_reasoning = self._reasoning_is_open = True
            item = make_reasoning(self._generation_id, "", "in_progress")
            (part,) = item["content"]
            begun = {**item, "content": []}
            written = [
                self._events.write("response.output_item.added", output_index=0, item=begun),
                self._events.write_part("response.content_part.added", item_id, 0, part=part),
            ]
        delta = self._events.write_part("response.reasoning_text.delta", item_id, 0, delta=text)
        return [*written, delta]

    def _close_reasoning(self) -> list[bytes]:
        if not self._reasoning_is_open:
            return []
        self._reasoning_is_open = False
        item = make_reasoning(self._generation_id, self._reasoning, "completed")
        (part,), item_id, events = item["content"], item["id"], self._events
        return [
            events.write_part("response.reasoning_text.done", item_id, 0, text=self._reasoning),
            events.write_part("response.content_part.done", item_id, 0, part=part),
            events.write("response.output_item.done", output_index=0, item=item),
        ]

    def _write_text(self, text: str, logprobs: list[dict[str, Any]]) -> list[bytes]:
        if not text and not (logprobs and self._has_message):
            return []
        opening = [] if self._has_message else self._open_message()
        delta = self._write_message_part(
            "response.output_text.delta", delta=text, logprobs=logprobs
        )
        return [*opening, delta]

    def _open_message(self) -> list[bytes]:
        closing = self._close_reasoning()
        self._has_message = True
        item = {**make_message(self._generation_id, "", "in_progress"), "content": []}
        part = make_text_part("", [])
        return [
            *closing,
            self._events.write(
                "response.output_item.added", output_index=self._message_index, item=item
            ),
            self._write_message_part("response.content_part.added", part=part),
        ]

    def _make_last_events(self, finished: GenerationFinished) -> list[bytes]:
        result = finished.sequences[0]
        reasoning, rest = self._parts.finish(result)
        written = self._write_reasoning(reasoning)
        if rest.strip():
            written += self._write_text(rest, [])
        written += self._close_reasoning()
        if not (self._has_message or self._has_reasoning or result.tool_calls):
            written += self._open_message()
        response = self._make_response(finished)
        for index, item in enumerate(response["output"]):
            if item["type"] == "message":
                written += self._close_message(item)
            elif item["type"] == "function_call":
                written += self._events.write_call(index, item)
        status = response["status"]
        return [*written, self._events.write(f"response.{status}", response=response)]

    def _close_message(self, item: dict[str, Any]) -> list[bytes]:
        (part,) = item["content"]
        return [
            self._write_message_part(
                "response.output_text.done", text=part["text"], logprobs=self._logprobs
            ),
            self._write_message_part("response.content_part.done", part=part),
            self._events.write(
                "response.output_item.done", output_index=self._message_index, item=item
            ),
        ]

    @property
    def _message_index(self) -> int:
        return int(self._has_reasoning)

    def _write_message_part(self, kind: str, **fields: object) -> bytes:
        item_id = f"msg_{self._generation_id}"
        return self._events.write_part(kind, item_id, self._message_index, **fields)

    def _make_response(self, finished: GenerationFinished) -> dict[str, Any]:
        result = finished.sequences[0]
        is_cut = result.finish_reason == FinishReason.FINISH_REASON_LENGTH
        status = "incomplete" if is_cut else "completed"
        num_reasoning = count_reasoning_tokens([self._parts], finished)
        usage = make_usage(finished)
        return {
            **self._head,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self._make_output(result, status),
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                # An upstream may not tell it.
                "input_tokens_details": usage.get("prompt_tokens_details"),
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": None
                if num_reasoning is None
                else {"reasoning_tokens": num_reasoning},
                "total_tokens": usage["total_tokens"],
            },
        }

    def _make_output(self, result: SequenceResult, status: str) -> list[dict[str, Any]]:
        items = make_call_items(self._generation_id, result)
        if self._has_message:
            text = get_content(result)
            items.insert(0, make_message(self._generation_id, text, status, self._logprobs))
        if self._has_reasoning:
            items.insert(0, make_reasoning(self._generation_id, self._reasoning, "completed"))
        return items

    def _note_logprobs(self, step: Step) -> list[dict[str, Any]]:
        num_top = self._wanted.num_top_logprobs
        if num_top is None:
            return []
        logprob = make_logprob(step, self._tokenizer, num_top)
        self._logprobs.append(logprob)
        return [logprob]
