"""One decoding step: the chosen token, and the decision that chose it.

The types are named tuples, because they are made and unpickled for every token, and a frozen
dataclass costs three times as much.
"""

from typing import NamedTuple


class Candidates(NamedTuple):
    """A step's most likely tokens, most likely first, as parallel sequences."""

    token_ids: list[int]
    logprobs: list[float]
    """Under the model's own distribution, in nats."""
    sampling_logprobs: list[float]
    """Under the processed distribution, in nats; -inf if a processor removed the token."""


class ProcessorEffects(NamedTuple):
    """Effects of each logits processor, in order of application."""

    num_kept: list[int]
    removed_mass: list[float]
    token_logprobs: list[float]
    """log p(chosen token) after each processor."""


class Draw(NamedTuple):
    """The random choice behind a sampled token: an exponential race."""

    noise: float
    """-log(u) of the chosen token."""
    runner_up_token_id: int | None
    margin: float | None
    """Nats by which the chosen token's logprob could be lower and the token still be chosen."""


class Internals(NamedTuple):
    """Sources and layer readouts of a token; empty or None if the model does not give them."""

    source_positions: list[int]
    """Context positions that attention read from, largest share first, without the newest and
    without sinks."""
    source_shares: list[float]
    """Share of each of `source_positions` in all that was read from the context."""
    self_share: float | None
    """Share of the newest position; None without sources."""
    layer_shares: list[float]
    """The chosen token's probability among the candidates and itself, after each layer."""
    layer_leaders: list[int]
    """Index of the most likely candidate after each layer; one beyond the last is the chosen
    token."""
    sink_share: float | None = None
    """Share of attention sinks; None if no position is one."""


class RequestedLogprobs(NamedTuple):
    """Log probabilities of `TraceOptions.logprob_token_ids`, in their order."""

    logprobs: list[float]
    """Under the model's own distribution, in nats."""
    sampling_logprobs: list[float]
    """Under the distribution drawn from; empty where nothing is drawn."""


class Decision(NamedTuple):
    """The chosen token of one step, and the numbers that explain the choice."""

    token_id: int
    logprob: float | None
    """Under the model's own distribution, before any processor; None for the first token of a
    prompt."""
    sampling_logprob: float | None = None
    rank: int | None = None
    entropy: float | None = None
    sampling_entropy: float | None = None
    candidates: Candidates | None = None
    effects: ProcessorEffects | None = None
    draw: Draw | None = None
    internals: Internals | None = None
    requested_logprobs: RequestedLogprobs | None = None


class Timing(NamedTuple):
    """Time and durations of a step."""

    elapsed_ns: int
    """Time from the request's arrival until the token was chosen."""
    forward_ns: int
    select_ns: int
    batch_size: int
    context_length: int


class BeamContinuation(NamedTuple):
    """A beam search hypothesis, extended by one token."""

    parent: int
    """Index among the kept continuations of the previous round; 0 in the first round."""
    token_id: int
    logprob: float
    """Logprob of the token after all processors, which is added to the score."""
    score: float
    """Sum of the hypothesis's logprobs so far."""
    kept: bool
    """True if the hypothesis continues in the next round."""
    finished: bool
    """True if the hypothesis ended and competes as a finished one."""


class BeamRound(NamedTuple):
    """One round of a beam search, recorded while the search runs."""

    index: int  # type: ignore[assignment]  # the contract's name; tuple.index is not wanted here
    continuations: list[BeamContinuation]
    timing: Timing


class Step(NamedTuple):
    """A recorded step: a decision with its index, text and timing."""

    sequence_index: int
    index: int  # type: ignore[assignment]  # the contract's name; tuple.index is not wanted here
    decision: Decision
    text: str
    text_begin_byte: int
    text_end_byte: int
    timing: Timing | None
