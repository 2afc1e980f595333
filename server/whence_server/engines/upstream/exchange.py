"""Requests to an upstream and its answers, in terms that all kinds share."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from whence_server.domain.chat import ChatInput
from whence_server.domain.decoding import Decoding, FinishReason
from whence_server.domain.observation import Observation


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A generation as an upstream is asked for it."""

    generation_id: str
    prompt: str | tuple[int, ...] | ChatInput
    """Text, token ids, or a conversation for the upstream's own template."""
    decoding: Decoding
    """Settings as applied; `seed` is always sent."""
    num_candidates: int | None
    """Number of candidates for each step; 0 for the chosen token's logprob alone; None for no
    logprobs."""
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    """`traceparent` and `tracestate`, under which the upstream's own spans hang."""
    passed_on: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the caller's request that whence does not know, sent as they are."""


class UpstreamCandidate(NamedTuple):
    """One entry of a step's table."""

    text: str
    """Spelling of the upstream; U+FFFD where a token's bytes are incomplete."""
    logprob: float
    token_id: int | None = None
    raw_bytes: bytes | None = None


class UpstreamToken(NamedTuple):
    """One generated token, as far as the upstream shows it; None is what it does not show."""

    text: str
    token_id: int | None = None
    raw_bytes: bytes | None = None
    logprob: float | None = None
    rank: int | None = None
    candidates: tuple[UpstreamCandidate, ...] | None = None
    """Most likely first; None without a table."""


class UpstreamPrompt(NamedTuple):
    """The prompt as far as the upstream tells it, before its first chunk."""

    text: str | None = None
    """Text that its template made."""
    token_ids: tuple[int, ...] | None = None


class UpstreamChunk(NamedTuple):
    """A piece of one sequence."""

    sequence_index: int
    text: str
    """Text of the chunk, which is that of its tokens or less, where a stop string was cut."""
    tokens: tuple[UpstreamToken, ...] = ()
    """Empty where the upstream tells only text."""
    finish: FinishReason | None = None
    stop: str = ""
    """Stop string or stop token's text, where the upstream names it."""
    tool_calls_json: str = ""
    """Piece of the message's tool calls, as the upstream sent it; "" for none."""
    reasoning: str = ""
    """Piece of the message's reasoning, where the upstream separates it from the text."""


class UpstreamEnd(NamedTuple):
    """Figures that the upstream tells at the end of a generation."""

    num_prompt_tokens: int | None = None
    num_generated_tokens: int | None = None
    num_cached_prompt_tokens: int | None = None
    seed: int | None = None
    fingerprint: str = ""
    """Its `system_fingerprint`, or the like."""
    model: str = ""
    """The model that it says it used."""
    has_drafted_tokens: bool = False
    """True if tokens were proposed by a draft model, so that some have no table."""


UpstreamEvent = UpstreamPrompt | UpstreamChunk | UpstreamEnd
"""Part of an answer: at most one prompt, chunks, and one end."""


@dataclass(frozen=True, slots=True)
class UpstreamDescription:
    """An upstream and the model that it serves, as it describes itself."""

    kind: str
    """"vllm", "llama.cpp", "sglang", "ollama" or "openai"."""
    version: str
    model: str
    """Name to send in requests."""
    max_context_length: int | None
    max_candidates: int
    """Most candidates that a request can ask for."""
    takes_token_ids: bool
    """True if a prompt can be given as token ids."""
    claimed_files: str = ""
    """Path or repository that it says the weights come from; "" if it says nothing."""
    vocabulary_size: int | None = None
    processor_order: tuple[str, ...] = ()
    """Order in which it applies "temperature", "top_k", "top_p" and "min_p" as it is sent them; ()
    if that is not known."""
    max_seed: int = 2**63 - 1
    """Largest seed that a request can have."""
    max_text_candidates: int | None = None
    """Most candidates of a completion, where a chat can have more; None for `max_candidates`."""

    def count_candidates(self, *, is_chat: bool) -> int:
        """Return the most candidates that a chat or a completion can ask for."""
        if is_chat or self.max_text_candidates is None:
            return self.max_candidates
        return self.max_text_candidates


class Upstream(Protocol):
    """One upstream."""

    async def describe(self) -> UpstreamDescription:
        """Ask the upstream what it is and what it serves.

        Raises:
            UpstreamError: it does not answer, or not as one of the known kinds.
        """

    def check(self, request: UpstreamRequest) -> None:
        """Refuse options that the upstream cannot apply.

        Raises:
            InvalidRequestError: names the option and the upstream.
        """

    def grade(self, request: UpstreamRequest) -> Observation:
        """Return the grades of the generation that the request asks for."""

    def pin(self) -> object:
        """Return what the upstream is now, for `generate`."""

    def generate(self, request: UpstreamRequest, pinned: object) -> AsyncIterator[UpstreamEvent]:
        """Yield the parts of the answer as they arrive; closing the iterator cancels the request.

        Args:
            request: the generation.
            pinned: what `pin` returned when the generation began, which its record names.

        Raises:
            UpstreamError: the upstream is away, refuses, or answers what nobody can read.
            UpstreamModelError: it is no longer what was pinned.
        """

    async def check_health(self) -> bool:
        """Return whether the upstream can answer now."""

    def watch(self, on_doubt: Callable[[], None]) -> None:
        """Call when the upstream has to be described anew, as it seems to be another one."""

    async def is_same(self) -> bool:
        """Return whether the upstream is what `describe` told last, as far as it says."""

    async def close(self) -> None:
        """Close the connections; requests that run are cancelled."""
