"""Question to the analysis process, and the frames of its answer; no torch."""

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

from whence_server.domain.chat import ChatRecord
from whence_server.domain.decoding import Decoding, FinishReason, Strategy, TraceDetail
from whence_server.domain.errors import WhenceError
from whence_server.domain.explanations import ExplainQuestion
from whence_server.domain.generation import SequenceResult
from whence_server.domain.steps import BeamRound, Decision, Step


class Unverifiable(StrEnum):
    """Causes for which nothing can be said about a generation; `VerificationResult.reason`."""

    NOT_FINISHED = "NOT_FINISHED"
    CONTENT_NOT_KEPT = "CONTENT_NOT_KEPT"
    REDACTED = "REDACTED"
    NO_TOKEN_IDS = "NO_TOKEN_IDS"  # noqa: S105 - a reason's name
    NO_TOKENS = "NO_TOKENS"
    NO_WEIGHTS = "NO_WEIGHTS"
    OTHER_WEIGHTS = "OTHER_WEIGHTS"
    OTHER_ADAPTER = "OTHER_ADAPTER"
    RECORD_UNREADABLE = "RECORD_UNREADABLE"
    TOO_LARGE = "TOO_LARGE"
    TOO_LONG = "TOO_LONG"
    NO_LOGPROBS = "NO_LOGPROBS"
    OTHER_DISTRIBUTION = "OTHER_DISTRIBUTION"
    OTHER_ENVIRONMENT = "OTHER_ENVIRONMENT"


class RecordedIdentity(NamedTuple):
    """Digests and environment that a record names."""

    model_digest: str
    tokenizer_digest: str
    weights_digest: str
    environment: dict[str, str]
    """Values of `Environment` by their names in the contract, without the weights digest."""
    adapter: str = ""
    """Name of the adapter that the request chose; "" for none."""
    adapter_weights_digest: str = ""


class Question(NamedTuple):
    """A recorded generation to verify.

    `decoding` has neither the model's end-of-sequence tokens nor the ids of `bad_words`: the
    analysis process takes them from the model and its tokenizer.
    """

    generation_id: str
    identity: RecordedIdentity
    decoding: Decoding
    logprobs_only: bool
    """True if another program drew the tokens."""
    prompt: str | None
    """Text of the prompt; None if it is not on record."""
    chat: ChatRecord | None
    is_token_input: bool
    """True if the request gave token ids, whose text is not tokenized."""
    prompt_token_ids: list[int]
    processor_names: tuple[str, ...]
    keeps_text: bool
    """True if the record holds texts."""
    prompt_decisions: list[Decision]
    """Decisions of the prompt's own tokens, if they were traced."""
    steps: list[Step]
    rounds: list[BeamRound]
    results: tuple[SequenceResult, ...]
    finish_reason: FinishReason
    num_candidates: int
    every_step: bool = False
    detail: TraceDetail | None = TraceDetail.DECISIONS
    """Detail of the trace, which says what numbers each step has; None to compare only those that
    are there, which measures what tokens alone tell."""
    logprob_token_ids: tuple[int, ...] = ()
    """Tokens whose logprobs each step has, besides those of the candidates."""
    num_generated_tokens: int | None = None
    """Number of tokens of all sequences on record; None if it is not known."""
    start_time_ns: int = 0
    """Unix time, in ns, of the request's arrival."""
    are_stops_told: bool = True
    """True if the results say which stop ended them; a bundle has no results."""
    unread: tuple[str, ...] = ()
    """Parts of the record that no replay computes, in words."""
    contradictions: tuple[str, ...] = ()
    """Words of a branch's record that no engine makes, or that its parent's record belies."""
    is_parent_compared: bool = False
    """True if the branch was compared with its parent's record."""

    @property
    def strategy(self) -> Strategy:
        """Strategy of the choice of tokens."""
        return self.decoding.strategy

    @property
    def num_given_steps(self) -> int:
        """Number of the first steps of each sequence whose tokens the record calls given."""
        return len(self.decoding.forced_token_ids)

    @property
    def gives_text(self) -> bool:
        """True if all tokens were given: a forced text, or a branch that says so of all steps."""
        if self.strategy is Strategy.FORCED:
            return True
        longest = max(map(len, self.list_sequences()), default=0)
        return 0 < longest <= self.num_given_steps

    def list_sequences(self) -> list[list[Step]]:
        """Return the steps of each sequence, by ascending index of sequence and step."""
        by_sequence: dict[int, list[Step]] = {}
        for step in self.steps:
            by_sequence.setdefault(step.sequence_index, []).append(step)
        return [
            sorted(by_sequence[index], key=lambda step: step.index) for index in sorted(by_sequence)
        ]


class Part(NamedTuple):
    """Part of a list of the question that follows."""

    name: str
    values: list[Any]


_LISTS = ("steps", "rounds", "prompt_decisions")
_PART_SIZE = 500


Asked: TypeAlias = Question | ExplainQuestion
"""A question of any kind."""


def split_question(question: Asked) -> Iterator[Part | Asked]:
    """Yield the parts of a question, and then the rest: encoding a part takes milliseconds."""
    if isinstance(question, ExplainQuestion):
        yield question
        return
    for name in _LISTS:
        values = getattr(question, name)
        for begin in range(0, len(values), _PART_SIZE):
            yield Part(name, values[begin : begin + _PART_SIZE])
    yield question._replace(steps=[], rounds=[], prompt_decisions=[])


def join_question(parts: Iterable[Part], rest: Asked) -> Asked:
    """Return the question of its parts."""
    if isinstance(rest, ExplainQuestion):
        return rest
    lists: dict[str, list[Any]] = {name: [] for name in _LISTS}
    for part in parts:
        lists[part.name] += part.values
    return rest._replace(
        steps=lists["steps"],
        rounds=lists["rounds"],
        prompt_decisions=lists["prompt_decisions"],
    )


class Found(NamedTuple):
    """A finding: a serialised VerifyGenerationResponse, or ExplainResponse."""

    message: bytes


class Done(NamedTuple):
    """End of the findings of one question."""


class Refused(NamedTuple):
    """End of the answer to a question that cannot be answered; the process goes on."""

    error: WhenceError


class Failed(NamedTuple):
    """Failure of the analysis process itself."""

    message: str


Answer = Found | Done | Refused | Failed
"""A message from the analysis process."""
