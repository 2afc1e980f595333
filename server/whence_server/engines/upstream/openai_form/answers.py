"""Streamed answers in the form of OpenAI's API: chat and completions."""

from collections.abc import Callable
from typing import Any

import orjson

from whence_server.domain.chat import ChatInput
from whence_server.domain.decoding import FinishReason
from whence_server.domain.errors import UpstreamError
from whence_server.engines.upstream.exchange import (
    UpstreamChunk,
    UpstreamEvent,
    UpstreamPrompt,
    UpstreamRequest,
    UpstreamToken,
)
from whence_server.engines.upstream.progress import Progress, read_finish
from whence_server.engines.upstream.wire.documents import (
    get_list,
    get_object,
    get_objects,
    get_text,
    get_token_ids,
    parse_object,
    quote,
)
from whence_server.engines.upstream.wire.events import Event
from whence_server.engines.upstream.wire.refusals import is_error, make_stream_error

_DONE = b"[DONE]"
_FAILURES = frozenset({"abort", "error"})
"""Finish reasons of a sequence that the upstream gave up."""

TokenReader = Callable[[dict[str, Any], dict[str, Any], str, str], tuple[UpstreamToken, ...]]
"""Reader of a choice's tokens, from the document, the choice, its text and its path."""


class OpenAIAnswer:
    """Reader of one answer.

    Args:
        request: the generation as it was asked for.
        progress: its progress.
        read_tokens: reader of a choice's tokens.
        name: the upstream, for errors.
        sums_usage: True if each sequence has a usage of its own.
    """

    def __init__(
        self,
        request: UpstreamRequest,
        progress: Progress,
        read_tokens: TokenReader,
        name: str,
        *,
        sums_usage: bool = False,
    ) -> None:
        self._is_chat = isinstance(request.prompt, ChatInput)
        self._stop_token_ids = request.decoding.stop_token_ids
        self._has_stops = bool(request.decoding.stop or self._stop_token_ids)
        self._progress = progress
        self._read_tokens = read_tokens
        self._name = name
        self._sums_usage = sums_usage
        self._has_prompt = False
        self._is_done = False

    def read(self, event: Event) -> list[UpstreamEvent]:
        """Return the parts of the answer that one server-sent event has.

        Raises:
            UpstreamError: it is an error, or cannot be read.
        """
        if self._is_done or event.data.strip() == _DONE:
            self._is_done = True
            return []
        document = parse_object(event.data, "event")
        if event.name == "error" or is_error(document):
            raise make_stream_error(self._name, document)
        self._progress.check_model(get_text(document, "model", ""))
        self._progress.note_usage(document, sums=self._sums_usage)
        self.note(document)
        events: list[UpstreamEvent] = []
        for place, choice in enumerate(get_objects(document, "choices", "")):
            path = f"choices[{place}]."
            self._add_prompt(document, choice, path, events)
            chunk = self._read_choice(document, choice, path)
            if chunk is not None:
                events.append(chunk)
        return events

    def finish(self) -> list[UpstreamEvent]:
        """Return the end of the answer.

        Raises:
            UpstreamUnfinishedError: a sequence has not ended.
        """
        return [self._progress.end()]

    def note(self, document: dict[str, Any]) -> None:
        """Note figures that only one kind of upstream sends."""

    def _add_prompt(
        self,
        document: dict[str, Any],
        choice: dict[str, Any],
        path: str,
        events: list[UpstreamEvent],
    ) -> None:
        if self._has_prompt:
            return
        token_ids = get_token_ids(document, "prompt_token_ids", "") or get_token_ids(
            choice, "prompt_token_ids", path
        )
        text = get_text(document, "prompt_text", "") or None
        if token_ids is not None or text is not None:
            self._has_prompt = True
            events.append(UpstreamPrompt(text, token_ids))

    def _read_choice(
        self, document: dict[str, Any], choice: dict[str, Any], path: str
    ) -> UpstreamChunk | None:
        index = self._progress.check_index(choice.get("index", 0))
        tool_calls = reasoning = ""
        if self._is_chat:
            delta = get_object(choice, "delta", path)
            # A refusal is the model's text, too; OpenAI puts it apart.
            text = get_text(delta, "content", f"{path}delta.") or get_text(
                delta, "refusal", f"{path}delta."
            )
            reasoning = get_text(delta, "reasoning_content", f"{path}delta.") or get_text(
                delta, "reasoning", f"{path}delta."
            )
            calls = get_list(delta, "tool_calls", f"{path}delta.")
            tool_calls = orjson.dumps(calls).decode() if calls else ""
        else:
            text = get_text(choice, "text", path)
        # A chunk of one token is its text, whichever part of the message that belongs to.
        told = "" if text and reasoning else text or reasoning
        tokens = self._read_tokens(document, choice, told, path)
        finish, stop = self._read_finish(choice, index, path)
        if not (text or tokens or tool_calls or reasoning or finish):
            return None
        return UpstreamChunk(index, text, tokens, finish, stop, tool_calls, reasoning)

    def _read_finish(
        self, choice: dict[str, Any], index: int, path: str
    ) -> tuple[FinishReason | None, str]:
        reason = get_text(choice, "finish_reason", path)
        if not reason or self._progress.is_finished(index):
            return None, ""
        if reason in _FAILURES:
            raise UpstreamError(f"{self._name} gave up the generation ({quote(reason)})")
        self._progress.finish(index)
        if reason == "stop" and "stop_reason" in choice:
            # vLLM says which: null is the end of the sequence.
            stop = choice["stop_reason"]
            if stop is None:
                return FinishReason.END_OF_SEQUENCE, ""
            return FinishReason.STOP, quote(str(stop))
        matched = choice.get("matched_stop")
        if reason == "stop" and matched is not None:
            # SGLang says which: also the token that ends the sequence.
            if isinstance(matched, str) or matched in self._stop_token_ids:
                return FinishReason.STOP, quote(str(matched))
            return FinishReason.END_OF_SEQUENCE, ""
        return read_finish(reason, has_stops=self._has_stops)
