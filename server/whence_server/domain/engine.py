"""Interface between the front (the process that serves gRPC) and an engine (which runs the model).

Messages are named tuples of plain values, which are cheap to pickle: one `Turn` crosses the
process boundary for every step of the whole batch. An engine imports this module; of the front,
only `app` imports an engine.
"""

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from whence_server.domain.chat import ChatInput
from whence_server.domain.decoding import Decoding, FinishReason, TraceOptions
from whence_server.domain.errors import Code
from whence_server.domain.model import ModelInfo
from whence_server.domain.observation import Observation
from whence_server.domain.steps import BeamContinuation, Decision
from whence_server.domain.tracing import TraceContext
from whence_server.domain.upstream import UpstreamDone, UpstreamPiece

# ---- front to engine ----


class Replay(NamedTuple):
    """Tokens of a sequence that continues after the death of the engine process that began it."""

    sequence_index: int
    token_ids: list[int]
    """Tokens generated before."""


class Admit(NamedTuple):
    """Request to run a generation; all its sequences share one prompt."""

    generation_id: str
    prompt_token_ids: list[int]
    decoding: Decoding
    trace: TraceOptions
    replays: Sequence[Replay] = ()
    """Sequences to continue; empty for a new generation, and for a beam search, which starts
    again from the prompt."""
    adapter: str = ""
    """Name of the adapter whose layers are added to the model; "" for none. Keys and values of a
    prompt depend on it."""
    prompt: str | ChatInput | None = None
    """Text or conversation, for an upstream that is not sent `prompt_token_ids`; None: it is."""
    trace_context: TraceContext | None = None
    """Span under which an upstream's own spans hang; None for whence's own engine."""
    upstream_parameters_json: str = ""
    """Fields of the upstream's own API, as a JSON object; "" for none."""
    caller: str = ""
    """Id of the caller; an engine that lets generations wait takes callers in turn."""


class StopSequence(NamedTuple):
    """Request to end one sequence, in whose text the front found a stop string."""

    generation_id: str
    sequence_index: int


class StopGeneration(NamedTuple):
    """Request to end a generation that was cancelled, has failed or has timed out."""

    generation_id: str


FrontMessage = Admit | StopSequence | StopGeneration
"""A message from the front to a running engine."""


# ---- engine to front ----


class StepMade(NamedTuple):
    """One sequence's new token."""

    generation_id: str
    sequence_index: int
    index: int  # type: ignore[assignment]  # the contract's name; nobody calls tuple.index
    decision: Decision
    context_length: int
    """Positions of the sequence in the cache when the token was chosen."""
    finish: FinishReason | None
    """END_OF_SEQUENCE, STOP (a stop token id) or LENGTH if this token is the last; else None."""
    constraint_complete: bool | None = None
    """True if the text up to this token belongs to the constraint's language; None without one."""


class Cost(NamedTuple):
    """Time and durations of a forward pass and of the choice of tokens from its logits."""

    ready_ns: int
    """CLOCK_MONOTONIC time at which the tokens were chosen."""
    forward_ns: int
    """Wall time of the forward pass; for a prompt read in chunks, that of the last chunk."""
    select_ns: int
    """Wall time from the logits to the chosen tokens and their decisions, for the whole batch."""
    batch_size: int
    """Number of sequences that took a step."""


class BeamRoundMade(NamedTuple):
    """One round of a generation's beam search, sent while the search runs."""

    generation_id: str
    index: int  # type: ignore[assignment]  # the contract's name; nobody calls tuple.index
    continuations: list[BeamContinuation]
    context_length: int
    """Positions of each beam in the cache when the tokens were chosen."""


class BeamStep(NamedTuple):
    """A step of a sequence that a beam search returns; sent after the search has ended."""

    decision: Decision
    context_length: int
    cost: Cost


class BeamSequence(NamedTuple):
    """A sequence that a beam search returns."""

    score: float
    """Sum of the tokens' logprobs with the length penalty applied."""
    finish: FinishReason
    steps: list[BeamStep]
    constraint_complete: bool | None = None
    """True if the text belongs to the constraint's language; None without one."""


class BeamSteps(NamedTuple):
    """A slice of the steps of a sequence that a beam search returns.

    Slices bound the time for which the end of a search delays other streams.
    """

    generation_id: str
    sequence_index: int
    first_index: int
    """Index, in the sequence, of the first of `steps`."""
    steps: list[BeamStep]
    score: float
    finish: FinishReason | None
    """Set in the slice with the sequence's last step; else None."""
    constraint_complete: bool | None = None
    """See `BeamSequence`; set in the slice with the sequence's last step."""


class BeamSearchDone(NamedTuple):
    """The end of a generation's beam search."""

    generation_id: str
    sequences: list[BeamSequence]
    """The returned sequences, best first; empty in messages to the front, which has received
    them as `BeamSteps`."""


class Prefilled(NamedTuple):
    """The end of a generation's prefill; its first steps come in the same turn or later."""

    generation_id: str
    started_ns: int
    """CLOCK_MONOTONIC time at which prefill began; before it the generation was queued."""
    finished_ns: int
    num_chunks: int
    """Forward passes that read the prompt."""
    num_cached_tokens: int = 0
    """Tokens of the prompt that were found in the prefix cache, and not read."""


class PromptReading(NamedTuple):
    """Progress of a generation's prefill; sent before every forward pass over its prompt."""

    generation_id: str
    num_tokens: int
    """Number of the prompt's tokens that have been read."""


class PromptScored(NamedTuple):
    """Decisions for the prompt's own tokens, from one chunk of the prompt."""

    generation_id: str
    first_index: int
    """Index, in the prompt, of the first token."""
    decisions: list[Decision]


class GenerationFailed(NamedTuple):
    """The failure of one generation, which has left the batch; the others go on."""

    generation_id: str
    reason: str
    """UPPER_SNAKE_CASE, e.g. NON_FINITE_LOGITS."""
    message: str
    code: Code | None = None
    """Status of the calls that read it; None for the reason's own."""
    retry_after_s: float | None = None
    """Seconds after which a caller may try again; None if that is not known."""


class Utilisation(NamedTuple):
    """Load of the engine."""

    num_cache_tokens: int = 0
    """Reserved positions of the key-value cache, padding included."""
    num_prefill_chunks: int = 0
    """Forward passes over prompts since the engine process started."""
    num_prefix_tokens: int = 0
    """Positions in the prefix cache."""


class Turn(NamedTuple):
    """One forward pass and its results.

    The pass covered either all running sequences or one chunk of a prompt. A prompt's last chunk
    brings the first steps of its sequences; an earlier chunk brings only decisions for the
    prompt's own tokens, if the request traces them. A turn without a forward pass brings failures,
    the slices of a finished beam search or the progress of a prompt.
    """

    cost: Cost
    utilisation: Utilisation = Utilisation()
    prompts_reading: Sequence[PromptReading] = ()
    prompt_scored: Sequence[PromptScored] = ()
    """Sent before the prompt's `prefilled`, or with it."""
    prefilled: Sequence[Prefilled] = ()
    steps: Sequence[StepMade] = ()
    failed: Sequence[GenerationFailed] = ()
    beam_rounds: Sequence[BeamRoundMade] = ()
    """Sent before the `beam_searches` that they end."""
    beam_steps: Sequence[BeamSteps] = ()
    beam_searches: Sequence[BeamSearchDone] = ()
    upstream_pieces: Sequence[UpstreamPiece] = ()
    upstream_done: Sequence[UpstreamDone] = ()
    """Sent after the generation's last piece."""


# ---- the engine itself ----


class EngineState(StrEnum):
    """State of an engine."""

    STARTING = "starting"
    """The model is being loaded for the first time."""
    RUNNING = "running"
    RESTARTING = "restarting"
    """The process has died, and another one is being started; or an upstream does not answer."""
    LOST = "lost"
    """The engine could not be started again; the server ends."""
    STOPPED = "stopped"
    ABSENT = "absent"
    """The server only records, and has no engine."""


class Grader(Protocol):
    """A judge of what an engine will show of a generation."""

    def grade(self, admission: Admit) -> Observation:
        """Return the grades of a generation that would be admitted.

        Raises:
            InvalidRequestError: the engine cannot apply one of the settings.
            NotOfferedError: the engine does not implement a part of the request.
        """


class Engine(Protocol):
    """An engine as the front uses it: start, messages, restart and stop."""

    @property
    def state(self) -> EngineState:
        """State of the engine."""

    @property
    def pid(self) -> int | None:
        """Id of the engine's process, whose memory the metrics report; None if it has none."""

    async def start(self) -> ModelInfo:
        """Load the model and return its description.

        Raises:
            ConfigurationError: the model cannot be served.
        """

    def send(self, message: FrontMessage) -> None:
        """Send a message without blocking."""

    def read_turns(self) -> AsyncIterator[Turn]:
        """Yield every turn until the engine is stopped.

        Raises:
            EngineLostError: the engine died; `restart` may start it again.
        """

    async def restart(self) -> None:
        """Start the engine again after its death.

        Raises:
            EngineLostError: the engine does not start, or its weights have changed.
        """

    async def stop(self) -> None:
        """Stop the engine."""
