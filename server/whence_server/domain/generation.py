"""The start and the finish of a generation, and its calls, as the journal records them."""

from dataclasses import dataclass, field

from whence_server.domain.chat import ChatRecord, ParsedReasoning, ParsedToolCall
from whence_server.domain.decoding import Decoding, FinishReason, TraceOptions
from whence_server.domain.errors import Code
from whence_server.domain.forking import Branch
from whence_server.domain.model import ModelInfo, NamedAdapter
from whence_server.domain.observation import Observation
from whence_server.domain.tracing import TraceContext
from whence_server.domain.upstream import UpstreamReport


@dataclass(frozen=True, slots=True)
class RecordedOrigin:
    """Origin of a generation that another process made."""

    library: str
    """Library that recorded it, with its version."""
    num_prompts: int
    """Prompts that one call continued together."""
    prompt_index: int
    """Index of its prompt among them."""


@dataclass(frozen=True, slots=True)
class Started:
    """Properties of a generation that are fixed before its first token."""

    generation_id: str
    trace_context: TraceContext
    start_time_ns: int
    """Unix time, in ns, of the request's arrival."""
    model: ModelInfo
    prompt: str
    prompt_token_ids: tuple[int, ...]
    decoding: Decoding
    trace: TraceOptions
    processor_names: tuple[str, ...]
    request_digest: str
    labels: dict[str, str] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    """Requested parts of the trace that are not available, each with the reason."""
    source_method: str = ""
    """Method that computes sources; empty if none are recorded."""
    adapter: NamedAdapter | None = None
    """Adapter that the request named."""
    constraint_engine: str = ""
    """Library that applies the constraint, with its version; empty without one."""
    chat: ChatRecord | None = None
    """The conversation; None for a request without one."""
    observation: Observation | None = None
    """Grades: how each part of the record is obtained."""
    upstream_parameters_json: str = ""
    """Fields of the upstream's own API, as a JSON object; "" for none."""
    recorded: RecordedOrigin | None = None
    """Origin of a generation that another process made; None for the server's own."""
    owner: str = ""
    """Id of the caller that started it; "" without authentication."""
    unrecorded_reason: str = ""
    """Reason of the journal's error if the generation is not on record; "" if it is."""
    branch: Branch | None = None
    """Difference from the parent; None for a generation that is no branch."""

    @property
    def operation(self) -> str:
        """GenAI operation name: "chat" if the request had a chat input."""
        return "text_completion" if self.chat is None else "chat"


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """One returned sequence."""

    sequence_index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str = ""
    """The stop string, or the stop token's text, that ended the sequence; else empty."""
    logprob: float | None = None
    score: float | None = None
    constraint_complete: bool | None = None
    """True if the text belongs to the constraint's language; None if that is not known."""
    tool_calls: tuple[ParsedToolCall, ...] = ()
    """Tool calls that were read from the text."""
    reasoning: ParsedReasoning | None = None
    """Reasoning that was read from the text."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Error of a failed generation: the status, reason and message of its call."""

    code: Code
    reason: str
    message: str
    retry_after_s: float | None = None
    """Seconds after which a caller may try again; None if that is not known."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Results of a generation, and the reason for its end."""

    sequences: tuple[SequenceResult, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_generated_tokens: int
    queue_ns: int
    prefill_ns: int
    decode_ns: int
    end_time_ns: int
    """Unix time in ns."""
    failure: Failure | None = None
    num_prefill_chunks: int | None = None
    """Forward passes that read the prompt; None if it was not read completely."""
    num_cached_prompt_tokens: int | None = None
    """Tokens of the prompt that were found in the prefix cache; None if it was not read
    completely."""
    upstream: UpstreamReport | None = None
    """Statements of the upstream; None for whence's own engine."""


@dataclass(frozen=True, slots=True)
class CallError:
    """Error that a call ended with, without the caller's content."""

    reason: str = ""
    """Reason as the caller received it; "" for an error inside the server."""
    field: str = ""
    """Path of the first field at fault; "" if no field is."""
    message: str = ""
    """Message as the caller received it; "" for an error inside the server."""
    exception_type: str = ""
    """Type of an exception inside the server; "" for every other error."""


@dataclass(frozen=True, slots=True)
class HttpExchange:
    """Request and answer of a call over HTTP."""

    method: str
    """Request method, e.g. "POST"."""
    route: str
    status_code: int
    """Status of the answer; 499 if the caller disconnected before the answer began."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call, from its arrival to its status; the source of its SERVER span."""

    trace_context: TraceContext
    method: str
    start_time_ns: int
    end_time_ns: int
    status_code: int
    generation_id: str
    server_address: str
    server_port: int | None
    error: CallError | None = None
    """None if the status is OK, or if the caller's cancel or deadline ended the call."""
    http: HttpExchange | None = None
    """None for a gRPC call."""
    caller_id: str = ""
    """Id of the caller; "" without authentication."""
