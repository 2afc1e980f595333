"""What the front and the engine process say to each other.

Named tuples of plain values: one `Turn` crosses the process boundary for every step of the
whole batch, so it has to be cheap to pickle.
"""

from collections.abc import Sequence
from typing import NamedTuple

from whence_server.domain.decoding import Decoding, FinishReason, TraceOptions
from whence_server.domain.model import ModelInfo
from whence_server.domain.steps import BeamContinuation, Decision

# ---- front to engine ----


class EngineOptions(NamedTuple):
    """The first message: which model to load, and the bounds to keep."""

    model: str
    """A local directory or a hub id."""
    model_name: str
    """The name under which it is served."""
    dtype: str
    """"auto", "float32", "bfloat16" or "float16"."""
    device: str
    num_threads: int
    """0 lets the engine choose."""
    max_batch_size: int
    max_cache_tokens: int
    prefill_chunk_tokens: int
    trust_remote_code: bool
    log_level: str
    """"debug", "info", "warning" or "error"."""
    digest_cache: str
    """A JSON file that remembers the digests of large files; "" for none."""
    log_format: str = "console"
    """"console" or "json"."""
    head_weights: str = ""
    """A file with a weight for each attention head; "" for none."""


class Recorded(NamedTuple):
    """A sequence that goes on where an earlier engine process left it."""

    sequence_index: int
    token_ids: list[int]
    """What was generated before."""


class Admit(NamedTuple):
    """Run this generation; all its sequences share one prompt."""

    generation_id: str
    prompt_token_ids: list[int]
    decoding: Decoding
    trace: TraceOptions
    recorded: Sequence[Recorded] = ()
    """The sequences that are to go on; none for a generation that begins, and none for a beam
    search, which begins again."""


class StopSequence(NamedTuple):
    """The front found this sequence's end (a stop string)."""

    generation_id: str
    sequence_index: int


class StopGeneration(NamedTuple):
    """Nobody wants this generation any more."""

    generation_id: str


# ---- engine to front ----


class Ready(NamedTuple):
    """The model is loaded; generations may be admitted."""

    model: ModelInfo


class LoadFailed(NamedTuple):
    """The model cannot be served; the process ends."""

    message: str


class StepMade(NamedTuple):
    """One sequence's new token."""

    generation_id: str
    sequence_index: int
    index: int  # type: ignore[assignment]  # the contract's name; nobody calls tuple.index
    decision: Decision
    context_length: int
    """Positions of the sequence in the cache when the token was chosen."""
    finish: FinishReason | None
    """END_OF_SEQUENCE, STOP (a stop token id) or LENGTH where this token is the last."""


class Cost(NamedTuple):
    """When a forward pass and the choice from it were done, and what they cost."""

    ready_ns: int
    """CLOCK_MONOTONIC when the tokens were chosen."""
    forward_ns: int
    """Wall time of the forward pass; of a prompt's last chunk, where there were several."""
    select_ns: int
    """From the logits to the chosen tokens and their record, for the whole batch."""
    batch_size: int
    """Sequences that took a step."""


class BeamRoundMade(NamedTuple):
    """One round of a generation's beam search, while it is under way."""

    generation_id: str
    index: int  # type: ignore[assignment]  # the contract's name; nobody calls tuple.index
    continuations: list[BeamContinuation]
    context_length: int
    """Positions of each beam in the cache when the tokens were chosen."""


class BeamStep(NamedTuple):
    """A step of a sequence that won; its round is long past."""

    decision: Decision
    context_length: int
    cost: Cost


class BeamSequence(NamedTuple):
    """A sequence that won a beam search."""

    score: float
    """Length-penalised."""
    finish: FinishReason
    steps: list[BeamStep]


class BeamSteps(NamedTuple):
    """Some steps in a row of a sequence that won: all at once would hold up everybody."""

    generation_id: str
    sequence_index: int
    first_index: int
    """Of the first of `steps`."""
    steps: list[BeamStep]
    score: float
    finish: FinishReason | None
    """With the sequence's last steps."""


class BeamSearchDone(NamedTuple):
    """A generation's beam search is over."""

    generation_id: str
    sequences: list[BeamSequence]
    """Those that are returned, best first; over the wire none, as `BeamSteps` came before."""


class Prefilled(NamedTuple):
    """A generation's prompt has been read; its first steps come in the same turn or later."""

    generation_id: str
    started_ns: int
    """CLOCK_MONOTONIC when its prefill began: what came before was the queue."""
    finished_ns: int
    num_chunks: int
    """Forward passes that read it."""


class PromptScored(NamedTuple):
    """What the model said of a prompt's own tokens, of one piece that was read."""

    generation_id: str
    first_index: int
    """Of the first token in the prompt."""
    decisions: list[Decision]


class GenerationFailed(NamedTuple):
    """One generation cannot go on, and has left the batch; the others do."""

    generation_id: str
    reason: str
    """UPPER_SNAKE_CASE, e.g. NON_FINITE_LOGITS."""
    message: str


class Load(NamedTuple):
    """How busy the engine is."""

    num_cache_tokens: int = 0
    """Positions that are spoken for, padding included."""
    num_prefill_chunks: int = 0
    """Forward passes over prompts since this engine process started."""


class Turn(NamedTuple):
    """One forward pass and all that came of it.

    It served either the running sequences, together, or a prompt, whose sequences' first steps
    it brings; a prompt's earlier chunks bring nothing but its own tokens' record where that is
    asked for. Failures, and slices of a beam search's end, may come alone.
    """

    cost: Cost
    load: Load = Load()
    prompt_scored: Sequence[PromptScored] = ()
    """Come before the prompts' `prefilled`, or with it."""
    prefilled: Sequence[Prefilled] = ()
    steps: Sequence[StepMade] = ()
    failed: Sequence[GenerationFailed] = ()
    beam_rounds: Sequence[BeamRoundMade] = ()
    """Come before the searches that they end."""
    beam_steps: Sequence[BeamSteps] = ()
    beam_searches: Sequence[BeamSearchDone] = ()
