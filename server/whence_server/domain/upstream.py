"""Records of an upstream: an engine of another project, which tells less than whence's own.

None is what it does not tell. Nothing is guessed in its place.
"""

from dataclasses import dataclass
from typing import NamedTuple

from whence_server.domain.chat import ToolCall
from whence_server.domain.decoding import FinishReason


@dataclass(frozen=True, slots=True)
class UpstreamInfo:
    """An upstream and its model, as it describes them."""

    kind: str
    """"vllm", "llama.cpp", "sglang", "ollama" or "openai"."""
    version: str
    url: str
    """URL without user name, password and query."""
    model: str
    """Name that it has for the model."""
    claimed_files: str = ""
    """Path or repository that it says the weights come from; "" if it says nothing."""
    weights_difference: str = ""
    """Difference between `claimed_files` and the files that whence digested; "" for none."""
    takes_token_ids: bool = False
    """True if a prompt can be sent as token ids."""
    max_candidates: int = 0
    """Most candidates that a conversation can ask for."""
    max_text_candidates: int = 0
    """Most candidates that a text or token ids can ask for."""
    max_seed: int = 2**31 - 1
    """Largest seed that it takes."""

    def __str__(self) -> str:
        """Return the upstream's kind and URL, for messages."""
        return f"the upstream ({self.kind} at {self.url})"


@dataclass(frozen=True, slots=True)
class UpstreamReport:
    """Statements of an upstream about one generation."""

    model: str = ""
    fingerprint: str = ""
    num_prompt_tokens: int | None = None
    num_generated_tokens: int | None = None
    num_cached_prompt_tokens: int | None = None
    seed: int | None = None
    has_drafted_tokens: bool = False
    """True if a draft model proposed tokens, so that some have no logprobs."""
    prompt: str = ""
    """Text that its chat template made."""
    prompt_token_ids: tuple[int, ...] = ()


class UpstreamCandidates(NamedTuple):
    """A step's table, most likely first, as parallel lists."""

    token_ids: list[int]
    """Empty unless the upstream told the ids of all."""
    texts: list[str]
    """Spelling of the upstream; empty if there are ids, and whence knows the vocabulary."""
    logprobs: list[float]
    sampling_logprobs: list[float]
    """Empty where they cannot be computed; -inf for a token that a processor removed."""


class UpstreamDecision(NamedTuple):
    """One token of an upstream, or a piece of text whose tokens it does not tell."""

    token_id: int | None = None
    token_text: str = ""
    """Spelling of the upstream; "" if there is an id, and whence knows the vocabulary, or for a
    piece of text."""
    logprob: float | None = None
    sampling_logprob: float | None = None
    rank: int | None = None
    candidates: UpstreamCandidates | None = None
    num_chunk_tokens: int | None = None
    """Number of tokens that came in one message with this one; None for one."""
    reasoning_text: str = ""
    """Reasoning that it adds, where the upstream tells that apart from the text."""


class UpstreamPiece(NamedTuple):
    """A message of an upstream about one sequence."""

    generation_id: str
    sequence_index: int
    ready_ns: int
    """CLOCK_MONOTONIC time of its arrival."""
    texts: list[str]
    """Text that each of `decisions` adds to the sequence."""
    decisions: list[UpstreamDecision]
    finish: FinishReason | None = None
    """Set if the sequence ends with the message."""
    stop: str = ""
    """Stop string, or stop token's text, as the upstream names it."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Tool calls of the sequence that are not in its text, set with `finish`."""


class UpstreamDone(NamedTuple):
    """The end of an upstream's answer: every sequence has ended."""

    generation_id: str
    report: UpstreamReport
