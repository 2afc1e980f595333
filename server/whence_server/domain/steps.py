"""One decoding step: the token that was chosen, and the decision that chose it.

Named tuples and not dataclasses: these are made and unpickled once for every token, where
a frozen dataclass costs three times as much.
"""

from typing import NamedTuple


class Candidates(NamedTuple):
    """A step's most likely tokens, most likely first, as parallel sequences."""

    token_ids: list[int]
    logprobs: list[float]
    """Under the model's own distribution, in nats."""
    sampling_logprobs: list[float]
    """Under the distribution drawn from; -inf where a processor removed the token."""


class ProcessorEffects(NamedTuple):
    """What each logits processor did, in the order of application."""

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
    """Nats by which the chosen token could have been less likely and still have won."""


class Internals(NamedTuple):
    """How a token formed inside the model; what the model cannot give is empty or None."""

    source_positions: list[int]
    """Context positions drawn on directly, strongest first, the newest not among them."""
    source_shares: list[float]
    """Of all that was drawn from the context, one for each position."""
    self_share: float | None
    """The newest position's; None without sources."""
    layer_shares: list[float]
    """After each layer, the chosen token's probability among the candidates and itself."""
    layer_leaders: list[int]
    """Which candidate led there, by its index; one beyond the last is the chosen token."""


class RequestedLogprobs(NamedTuple):
    """Log probabilities of `TraceOptions.logprob_token_ids`, in their order."""

    logprobs: list[float]
    """Under the model's own distribution, in nats."""
    sampling_logprobs: list[float]
    """Under the distribution drawn from; empty where nothing is drawn."""


class Decision(NamedTuple):
    """What the engine knows of one step."""

    token_id: int
    logprob: float | None
    """Under the model's own distribution, before any processor; None for a prompt's first."""
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
    """When a step happened and what it cost."""

    elapsed_ns: int
    """From the request's arrival until the token was ready."""
    forward_ns: int
    select_ns: int
    batch_size: int
    context_length: int


class BeamContinuation(NamedTuple):
    """A hypothesis of beam search, longer by one token."""

    parent: int
    """Place among the previous round's kept continuations, as listed; 0 in the first round."""
    token_id: int
    logprob: float
    """Of the token, after all processors: what it added to the score."""
    score: float
    """Sum of these so far."""
    kept: bool
    """Whether it goes on into the next round."""
    finished: bool
    """Whether it ended and competes as a finished hypothesis."""


class BeamRound(NamedTuple):
    """One round of beam search: what is recorded while it is under way."""

    index: int  # type: ignore[assignment]  # the contract's name; tuple.index is not wanted here
    continuations: list[BeamContinuation]
    timing: Timing


class Step(NamedTuple):
    """A decision with its place in the sequence, its text and its timing: what is recorded."""

    sequence_index: int
    index: int  # type: ignore[assignment]  # the contract's name; tuple.index is not wanted here
    decision: Decision
    text: str
    text_begin_byte: int
    text_end_byte: int
    timing: Timing | None
