"""Generations that another process makes, as `RecordService` receives them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from whence_server.domain.decoding import Decoding, FinishReason, TraceOptions
from whence_server.domain.engine import Cost
from whence_server.domain.generation import Failure
from whence_server.domain.model import ModelInfo
from whence_server.domain.steps import BeamContinuation, Decision
from whence_server.domain.tracing import TraceContext

MAX_TOKENIZER_BYTES = 64 << 20
"""Maximum size of a recorded model's tokenizer."""
MAX_TOKENIZERS_BYTES = 1 << 30
"""Maximum size of the tokenizers that all recorders hold at the same time."""
MAX_OWNER_TOKENIZERS_BYTES = 256 << 20
"""Maximum size of the tokenizers that the recorders of one caller hold at the same time."""
MAX_MODELS = 64
"""Number of models of one recorder that are kept ready: those that it used last."""
MAX_BATCHES = 1024
"""Maximum number of batches of one recorder that run at the same time."""
MAX_RECORDERS = 256
"""Maximum number of recorders that are connected or expected back."""
MAX_OWNER_RECORDERS = 128
"""Maximum number of them that one authenticated caller has."""
MAX_ROWS = 4096
"""Maximum number of sequences, and of beams, of one batch."""
GRACE_S = 60.0
"""Seconds in which a recorder whose connection broke has to come back."""


@dataclass(frozen=True, slots=True)
class RecordedModel:
    """A model in another process, before its tokenizer has arrived."""

    number: int
    info: ModelInfo
    tokenizer_sha256: str
    tokenizer_bytes: int


class RecordedPrompt(NamedTuple):
    """One prompt of a batch, which one generation continues."""

    generation_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BatchStart:
    """Start of a batch: all that is known before its first step."""

    number: int
    model_number: int
    start_time_ns: int
    """Unix time in ns."""
    trace_contexts: Sequence[TraceContext]
    """One for each prompt."""
    decoding: Decoding
    trace: TraceOptions
    processor_names: tuple[str, ...]
    prompts: Sequence[RecordedPrompt]
    request_digest: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Number of sequences."""
        return len(self.prompts) * self.decoding.num_return_sequences


class RowStep(NamedTuple):
    """A row's new token."""

    row: int
    decision: Decision
    finish: FinishReason | None


class BatchStep(NamedTuple):
    """Tokens of a batch with one index in their sequences."""

    batch_number: int
    index: int  # type: ignore[assignment]  # the contract's name; nobody calls tuple.index
    cost: Cost
    """`ready_ns` counts from the batch's start."""
    steps: list[RowStep]


class BatchRound(NamedTuple):
    """One round of a batch's beam searches."""

    batch_number: int
    index: int  # type: ignore[assignment]  # the contract's name; nobody calls tuple.index
    cost: Cost
    """`ready_ns` counts from the batch's start."""
    continuations: dict[int, list[BeamContinuation]]
    """Continuations by the index of their prompt."""


class BatchEnd(NamedTuple):
    """End of a batch; times count from its start."""

    batch_number: int
    elapsed_ns: int
    prefill_begin_ns: int
    prefill_end_ns: int
    finish_reason: FinishReason | None
    """Reason for sequences that have none; None if the call returned."""
    failure: Failure | None
    scores: list[float]
    """Scores of the rows, for beam search; else empty."""
    num_lost: int
    """Steps and rounds that the recorder lost."""


class Refusal(NamedTuple):
    """A batch that is recorded no further, and the reason."""

    batch_number: int
    failure: Failure
