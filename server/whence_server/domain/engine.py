"""The contract between the front and an engine, whichever it is: messages, and `Engine` itself.

Named tuples of plain values: one `Turn` crosses the process boundary for every step of the
whole batch, so it has to be cheap to pickle. An engine imports this module, and the front imports
no engine but where the server is put together.
"""

from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from whence_server.domain.decoding import Decoding, FinishReason, TraceOptions
from whence_server.domain.model import ModelInfo
from whence_server.domain.steps import BeamContinuation, Decision

# ---- front to engine ----


class Replay(NamedTuple):
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
    replays: Sequence[Replay] = ()
    """The sequences that are to go on; none for a generation that begins, and none for a beam
    search, which begins again."""


class StopSequence(NamedTuple):
    """The front found this sequence's end (a stop string)."""

    generation_id: str
    sequence_index: int


class StopGeneration(NamedTuple):
    """Nobody wants this generation any more."""

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


class Utilisation(NamedTuple):
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
    utilisation: Utilisation = Utilisation()
    prompt_scored: Sequence[PromptScored] = ()
    """Come before the prompts' `prefilled`, or with it."""
    prefilled: Sequence[Prefilled] = ()
    steps: Sequence[StepMade] = ()
    failed: Sequence[GenerationFailed] = ()
    beam_rounds: Sequence[BeamRoundMade] = ()
    """Come before the searches that they end."""
    beam_steps: Sequence[BeamSteps] = ()
    beam_searches: Sequence[BeamSearchDone] = ()


# ---- the engine itself ----


class EngineState(StrEnum):
    """What an engine is doing."""

    STARTING = "starting"
    """The model is being loaded for the first time."""
    RUNNING = "running"
    RESTARTING = "restarting"
    """The process has died, and another takes its place."""
    LOST = "lost"
    """It does not start any more: the server ends."""
    STOPPED = "stopped"


class Engine(Protocol):
    """An engine as the front sees it: its messages, and its life from the start to the end."""

    @property
    def state(self) -> EngineState:
        """What it is doing."""

    @property
    def pid(self) -> int | None:
        """The id of its process, whose memory the metrics report; None where it has none."""

    async def start(self) -> ModelInfo:
        """Load the model; return its description.

        Raises:
            ConfigurationError: the model cannot be served.
        """

    def send(self, message: FrontMessage) -> None:
        """Hand over a message; never block."""

    def read_turns(self) -> AsyncIterator[Turn]:
        """Yield every turn, until the engine is stopped.

        Raises:
            EngineLostError: it died; `restart` may bring it back.
        """

    async def restart(self) -> None:
        """Start it again after its death.

        Raises:
            EngineLostError: it does not start any more, or its weights are other ones.
        """

    async def stop(self) -> None:
        """End it."""
