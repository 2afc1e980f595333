"""Answers of the Responses API: a response and its items, whole or in events."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from whence.v1.generation_pb2 import (
    FinishReason,
    GenerationFinished,
    GenerationStarted,
    SequenceResult,
)
from whence.v1.step_pb2 import Step
from whence_server.domain.model import ModelInfo
from whence_server.http.exchange import Exchange
from whence_server.http.openai.outcome import make_logprob, make_usage, select_steps
from whence_server.http.openai.requests import Wanted
from whence_server.http.openai.running import Event
from whence_server.http.openai.tool_calls import HeldText, make_calls, take_out_calls
from whence_server.http.streams import make_event
from whence_server.text.tokenizer import TextTokenizer


class ResponseWriter:
    """Writer of one request's answer: at most one message, then the tool calls."""

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
        self._held = HeldText("", tokenizer)
        self._generation_id = exchange.generation_id
        self._number = 0
        self._has_message = False
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
        finished = events[-1]
        assert isinstance(finished, GenerationFinished)  # noqa: S101 - read_finished says so
        self._note_logprobs(select_steps(events, 0))
        result = finished.sequences[0]
        content = take_out_calls(result)
        self._has_message = bool(content.strip()) or not result.tool_calls
        return self._make_response(finished)

    def make_events(self, events: Sequence[Event]) -> list[bytes]:
        """Return the events of the next events of the generation."""
        written = []
        for event in events:
            if isinstance(event, Step):
                written += self._make_deltas(self._held.push(event), self._note_logprobs([event]))
            elif isinstance(event, GenerationStarted):
                self._held = HeldText(event.chat.tool_call_format, self._tokenizer)
                response = {**self._head, "status": "in_progress", "output": [], "usage": None}
                written.append(self._make_event("response.created", response=response))
                written.append(self._make_event("response.in_progress", response=response))
            else:
                written += self._make_last_events(event)
        return written

    def _make_deltas(self, text: str, logprobs: list[dict[str, Any]]) -> list[bytes]:
        if not text and not (logprobs and self._has_message):
            return []
        opening = [] if self._has_message else self._open_message()
        delta = self._make_part_event("response.output_text.delta", delta=text, logprobs=logprobs)
        return [*opening, delta]

    def _open_message(self) -> list[bytes]:
        self._has_message = True
        item = {**self._make_message("", "in_progress"), "content": []}
        return [
            self._make_event("response.output_item.added", output_index=0, item=item),
            self._make_part_event("response.content_part.added", part=_make_part("", [])),
        ]

    def _make_last_events(self, finished: GenerationFinished) -> list[bytes]:
        result = finished.sequences[0]
        rest = self._held.finish(result)
        written = self._make_deltas(rest, []) if rest.strip() else []
        if not self._has_message and not result.tool_calls:
            written += self._open_message()
        response = self._make_response(finished)
        for index, item in enumerate(response["output"]):
            written += (
                self._close_message(item)
                if item["type"] == "message"
                else self._make_call_events(index, item)
            )
        return [*written, self._make_event(f"response.{response['status']}", response=response)]

    def _close_message(self, item: dict[str, Any]) -> list[bytes]:
        (part,) = item["content"]
        return [
            self._make_part_event(
                "response.output_text.done", text=part["text"], logprobs=self._logprobs
            ),
            self._make_part_event("response.content_part.done", part=part),
            self._make_event("response.output_item.done", output_index=0, item=item),
        ]

    def _make_call_events(self, index: int, item: dict[str, Any]) -> list[bytes]:
        place = {"item_id": item["id"], "output_index": index}
        begun = {**item, "status": "in_progress", "arguments": ""}
        written, name = item["arguments"], item["name"]
        prefix = "response.function_call_arguments"
        return [
            self._make_event("response.output_item.added", output_index=index, item=begun),
            self._make_event(f"{prefix}.delta", **place, delta=written),
            self._make_event(f"{prefix}.done", **place, name=name, arguments=written),
            self._make_event("response.output_item.done", output_index=index, item=item),
        ]

    def _make_response(self, finished: GenerationFinished) -> dict[str, Any]:
        result = finished.sequences[0]
        is_cut = result.finish_reason == FinishReason.FINISH_REASON_LENGTH
        status = "incomplete" if is_cut else "completed"
        usage = make_usage(finished)
        message = [self._make_message(take_out_calls(result), status)] if self._has_message else []
        return {
            **self._head,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [*message, *self._make_call_items(result)],
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                # An upstream may not tell it.
                "input_tokens_details": usage.get("prompt_tokens_details"),
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }

    def _make_message(self, text: str, status: str) -> dict[str, Any]:
        return {
            "id": f"msg_{self._generation_id}",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [_make_part(text, self._logprobs)],
        }

    def _make_call_items(self, result: SequenceResult) -> list[dict[str, Any]]:
        return [
            {
                "id": f"fc_{self._generation_id}_{number}",
                "type": "function_call",
                "status": "completed",
                "call_id": call["id"],
                **call["function"],
            }
            for number, call in enumerate(make_calls(result))
        ]

    def _make_part_event(self, kind: str, **fields: object) -> bytes:
        place = {
            "item_id": f"msg_{self._generation_id}",
            "output_index": 0,
            "content_index": 0,
        }
        return self._make_event(kind, **place, **fields)

    def _make_event(self, kind: str, **fields: object) -> bytes:
        document = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return make_event(orjson.dumps(document), kind)

    def _note_logprobs(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        num_top = self._wanted.num_top_logprobs
        if num_top is None:
            return []
        noted = [make_logprob(step, self._tokenizer, num_top) for step in steps]
        self._logprobs += noted
        return noted


def _make_part(text: str, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}
