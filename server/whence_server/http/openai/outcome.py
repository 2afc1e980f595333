"""Parts of the API's answers: tokens with logprobs, finish reasons, numbers of tokens."""

from collections.abc import Sequence
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


def make_fingerprint(model: ModelInfo) -> str:
    """Return `system_fingerprint`: it changes with the weights that compute."""
    return f"fp_{model.weights_digest[:16]}"


def make_usage(finished: GenerationFinished) -> dict[str, Any]:
    """Return the numbers of tokens."""
    num_prompt, num_generated = finished.num_prompt_tokens, finished.num_generated_tokens
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_generated,
        "total_tokens": num_prompt + num_generated,
        "prompt_tokens_details": {"cached_tokens": finished.num_cached_prompt_tokens},
    }


def make_logprob(step: Step, tokenizer: TextTokenizer, num_top: int) -> dict[str, Any]:
    """Return a token with its logprob under the model's own distribution.

    Args:
        step: the token's step.
        tokenizer: gives the texts and bytes of tokens.
        num_top: number of likeliest tokens to tell.
    """
    candidates = step.candidates
    pairs = list(zip(candidates.token_ids, candidates.logprobs, strict=True))[:num_top]
    return {
        **_make_token(step.token_id, step.logprob, tokenizer),
        "top_logprobs": [_make_token(token_id, logprob, tokenizer) for token_id, logprob in pairs],
    }


def _make_token(token_id: int, logprob: float, tokenizer: TextTokenizer) -> dict[str, Any]:
    token = tokenizer.list_vocabulary()[token_id]
    return {
        "token": tokenizer.get_token_text(token_id),
        "bytes": list(token),
        "logprob": max(shorten_float32(logprob), _LOWEST),
    }


def select_steps(steps: Sequence[Any], sequence_index: int) -> list[Step]:
    """Return the steps of one sequence among a generation's events."""
    return [
        step for step in steps if isinstance(step, Step) and step.sequence_index == sequence_index
    ]
