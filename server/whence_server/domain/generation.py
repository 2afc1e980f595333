"""A generation from its start to its finish, as the journal records it."""

from dataclasses import dataclass, field

from whence_server.domain.decoding import Decoding, FinishReason, TraceOptions
from whence_server.domain.errors import Code
from whence_server.domain.model import ModelInfo
from whence_server.domain.tracing import TraceContext


@dataclass(frozen=True, slots=True)
class Started:
    """What was fixed before the first token."""

    generation_id: str
    trace_context: TraceContext
    start_time_ns: int
    """Unix time of the request's arrival."""
    model: ModelInfo
    prompt: str
    prompt_token_ids: tuple[int, ...]
    decoding: Decoding
    trace: TraceOptions
    processor_names: tuple[str, ...]
    request_digest: str
    labels: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    """Parts of the trace that were asked for and cannot be given, and why."""
    source_method: str = ""
    """How sources are found; empty where none are recorded."""
    operation: str = "text_completion"
    """The GenAI operation: "chat" where the request had a chat input."""


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """One returned sequence."""

    sequence_index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str = ""
    """The stop string, or the stop token's text, that ended it."""
    logprob: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a generation failed, as a live call would have got it."""

    code: Code
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Finished:
    """How a generation ended."""

    sequences: tuple[SequenceResult, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_generated_tokens: int
    queue_ns: int
    prefill_ns: int
    decode_ns: int
    end_time_ns: int
    """Unix time."""
    failure: Failure | None = None
    num_prefill_chunks: int | None = None
    """Forward passes that read the prompt; None where it was not read to its end."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One RPC, from its arrival to its status: what its SERVER span is made from."""

    trace_context: TraceContext
    method: str
    start_time_ns: int
    end_time_ns: int
    status_code: int
    generation_id: str
    server_address: str
    server_port: int | None
