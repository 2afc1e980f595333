"""Place of a generation in its trace: the fields of its start that every span needs."""

from collections.abc import Callable
from dataclasses import dataclass, field

from whence.summary import FORCED, TokenNames
from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain.tracing import SAMPLED
from whence_server.telemetry.spans.ids import SpanIds, parse_hex_id
from whence_server.telemetry.spans.token_names import ID_WORDS, TokenWords

HAS_IS_REMOTE = 0x100
IS_REMOTE = 0x200
W3C_FLAGS = 0xFF


@dataclass(frozen=True, slots=True)
class Origin:
    """Place of a generation in its trace; small, because thousands are cached."""

    generation_id: str
    trace_id: bytes
    server_span_id: bytes
    trace_flags: int
    trace_state: str
    start_time_ns: int
    num_sequences: int
    sampled: bool
    """True if the generation has spans."""
    ids: SpanIds
    strategy: str
    """Name of Decoding.strategy."""
    names: TokenNames = field(compare=False)
    """Names of its tokens, shared by all generations of a tokenizer."""
    get_text: Callable[[int], str] | None = field(compare=False)
    """Returns a token's text; None where spans carry no text, or it is not known."""
    constrained: bool = False
    """True if the first processor of its steps is the request's constraint."""
    num_forced_steps: int = 0
    """Number of a branch's steps whose tokens were given."""

    def get_strategy(self, index: int) -> str:
        """Return the name of the strategy that gave the token at an index."""
        return FORCED if index < self.num_forced_steps else self.strategy

    @property
    def span_flags(self) -> int:
        """Flags of a span whose parent is a span of this server."""
        return self.trace_flags | HAS_IS_REMOTE


def read_origin(started: GenerationStarted, words: TokenWords = ID_WORDS) -> Origin:
    """Read a generation's place in its trace from its start.

    Args:
        started: the start.
        words: names and texts of the generation's tokens.

    Raises:
        ValueError: the trace id or the span id is not a W3C id.
    """
    trace_id = parse_hex_id(started.trace_id, 16)
    return Origin(
        generation_id=started.generation_id,
        trace_id=trace_id,
        server_span_id=parse_hex_id(started.span_id, 8),
        trace_flags=started.trace_flags & W3C_FLAGS,
        trace_state=started.trace_state,
        start_time_ns=started.start_time.ToNanoseconds(),
        num_sequences=started.effective_decoding.num_return_sequences or 1,
        sampled=bool(started.trace_flags & SAMPLED),
        ids=SpanIds(trace_id, started.generation_id),
        strategy=started.effective_decoding.WhichOneof("strategy") or "",
        names=words.names,
        get_text=words.get_text,
        constrained=started.effective_decoding.HasField("constraint"),
        num_forced_steps=started.fork.num_forced_steps,
    )
