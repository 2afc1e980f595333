"""Parts of the API's answers: tokens with logprobs, finish reasons, numbers of tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from whence.summary import shorten_float32
from whence.v1.generation_pb2 import FinishReason, GenerationFinished
from whence.v1.step_pb2 import Step
from whence_server.domain.model import ModelInfo
from whence_server.http.streams import make_event
from whence_server.text.tokenizer import TextTokenizer

DONE = make_event(b"[DONE]")
"""Last event of a stream."""

_FINISH_REASONS = {
    FinishReason.FINISH_REASON_END_OF_SEQUENCE: "stop",
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
}
_LOWEST = -9999.0
"""OpenAI's number for a logprob that is not known or minus infinity."""


def get_finish_reason(reason: FinishReason.ValueType) -> str:
    """Return a sequence's finish reason in the API's words."""
    return _FINISH_REASONS[reason]


def make_fingerprint(model: ModelInfo) -> str | None:
    """Return `system_fingerprint`: it changes with the weights that compute; None if unknown."""
    digest = model.weights_digest or model.model_digest
    return f"fp_{digest[:16]}" if digest else None


def update_fingerprint(head: Mapping[str, Any], finished: GenerationFinished) -> dict[str, Any]:
    """Return the head of a whole answer, with the upstream's fingerprint if it told one."""
    told = finished.upstream.fingerprint
    return {**head, "system_fingerprint": told or head["system_fingerprint"]}


def make_usage(finished: GenerationFinished, num_reasoning_tokens: int = 0) -> dict[str, Any]:
    """Return the numbers of tokens.

    Args:
        finished: the generation's end.
        num_reasoning_tokens: number of generated tokens that are reasoning.
    """
    num_prompt, num_generated = finished.num_prompt_tokens, finished.num_generated_tokens
    usage: dict[str, Any] = {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
    }
    # An upstream may not tell it.
    if finished.HasField("num_cached_prompt_tokens"):
        usage["prompt_tokens_details"] = {"cached_tokens": finished.num_cached_prompt_tokens}
    if num_reasoning_tokens:
        usage["completion_tokens_details"] = {"reasoning_tokens": num_reasoning_tokens}
    return usage


def make_logprob(step: Step, tokenizer: TextTokenizer | None, num_top: int) -> dict[str, Any]:
    """Return a token with its logprob under the model's own distribution.

    Args:
        step: the token's step.
        tokenizer: gives the texts and bytes of tokens; None for an upstream that told the texts,
            or only the ids, which stand in their place as "token_id:7042".
        num_top: number of likeliest tokens to tell.
    """
    table = step.candidates
    ids: Sequence[int | None] = table.token_ids
    logprobs: Sequence[float] = table.logprobs
    if not ids:
        ids, logprobs = [None] * len(table.texts), table.text_logprobs
    texts = table.texts or [""] * len(ids)
    token_id = step.token_id if step.HasField("token_id") else None
    own = step.logprob if step.HasField("logprob") else _LOWEST
    if not table.texts and token_id in ids and step.token_text:
        texts = [step.token_text if known == token_id else "" for known in ids]
    top = list(zip(ids, texts, logprobs, strict=True))[:num_top]
    return {
        **_make_token(token_id, step.token_text, own, tokenizer),
        "top_logprobs": [_make_token(*entry, tokenizer) for entry in top],
    }


def _make_token(
    token_id: int | None, text: str, logprob: float, tokenizer: TextTokenizer | None
) -> dict[str, Any]:
    token: bytes | None = text.encode()
    if not text and token_id is not None:
        if tokenizer is None:
            # vLLM's own spelling of a token without a text.
            text, token = f"token_id:{token_id}", None
        else:
            text, token = tokenizer.get_token_text(token_id), tokenizer.list_vocabulary()[token_id]
    return {
        "token": text,
        "bytes": None if token is None else list(token),
        "logprob": max(shorten_float32(logprob), _LOWEST),
    }


def select_steps(steps: Sequence[Any], sequence_index: int) -> list[Step]:
    """Return the steps of one sequence among a generation's events."""
    return [
        step for step in steps if isinstance(step, Step) and step.sequence_index == sequence_index
    ]
