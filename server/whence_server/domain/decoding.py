"""Decoding and trace settings of a generation, as applied."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Annotated

from whence_server.domain import bounds
from whence_server.domain.constraints import Constraint
from whence_server.domain.content import ContentPolicy
from whence_server.domain.options import Entries, Kind, Option, Rule, list_declared_options

MAX_SEED = 2**64 - 1


class Strategy(Enum):
    """Ways of choosing a step's token from its distribution; values are names in the contract."""

    GREEDY = "greedy"
    SAMPLE = "sample"
    BEAM_SEARCH = "beam_search"
    FORCED = "forced"


class EarlyStopping(Enum):
    """Ends of beam search, as in transformers' `early_stopping`; values as in the contract."""

    WHEN_ENOUGH = 1
    NEVER = 2
    HEURISTIC = 3


@dataclass(frozen=True, slots=True)
class Configured:
    """Logits processing that only a model's generation config can turn on.

    Names and meaning are those of transformers' `GenerationConfig`; a neutral value is off.
    """

    sequence_biases: tuple[tuple[tuple[int, ...], float], ...] = ()
    """(token ids, amount added to the last one's logit where the others come before it)."""
    suppress_token_ids: tuple[int, ...] = ()
    """Tokens that are never chosen."""
    begin_suppress_token_ids: tuple[int, ...] = ()
    """Tokens that are not chosen at step `begin_suppress_index`."""
    begin_suppress_index: int = 0
    forced_bos_token_id: int | None = None
    """The first token; for prompts of one token."""
    forced_eos_token_ids: tuple[int, ...] = ()
    """Tokens to choose from at the last step that `max_new_tokens` allows; empty is off."""
    top_h: float = 0.0
    """Share of the entropy that the most likely tokens are kept up to; 0 is off."""
    renormalize_logits: bool = False
    """True if scores are normalised to logprobs after all other processors."""


_CHOOSING = frozenset({Strategy.GREEDY, Strategy.SAMPLE, Strategy.BEAM_SEARCH})
_SAMPLING = frozenset({Strategy.SAMPLE})
_SEARCHING = frozenset({Strategy.BEAM_SEARCH})
_SAMPLE = Option("decoding.sample", configured_for=_SAMPLING)


def _declare_sampling(
    allows: Callable[[float], bool], text: str, *, is_float: bool = False
) -> Option:
    return replace(_SAMPLE, rule=Rule(allows, text, is_float=is_float))


def _is_temperature(value: float) -> bool:
    return bounds.is_within(value, bounds.MIN_TEMPERATURE, bounds.MAX_TEMPERATURE)


@dataclass(frozen=True, slots=True)
class Decoding:
    """A request's decoding settings as applied, with all defaults filled in.

    Settings that the strategy does not use hold their neutral value: their field's default.
    Probabilities and penalties follow transformers' `GenerationConfig` in name and meaning. Fields
    with an `Option` are those of the contract; a new one also needs a field in `DecodingRequest`
    and, where the model's generation config can set it, in `GenerationDefaults`.
    """

    strategy: Strategy
    max_new_tokens: Annotated[int, Option(shapes_choice=True)]
    min_new_tokens: Annotated[int, Option(shapes_choice=True)] = 0
    stop: Annotated[
        tuple[str, ...],
        Option(
            kind=Kind.LIST,
            entries=Entries("max_stop_strings", "strings"),
            configured_for=_CHOOSING,
        ),
    ] = ()
    """Stop strings; the front decides on them, the engine never sees text."""
    stop_token_ids: Annotated[
        tuple[int, ...],
        Option(kind=Kind.LIST, entries=Entries("max_stop_token_ids", "ids", are_token_ids=True)),
    ] = ()
    eos_token_ids: tuple[int, ...] = ()
    """The model's end-of-sequence ids; kept also where `ignore_eos` is set."""
    ignore_eos: Annotated[bool, Option()] = False
    num_return_sequences: Annotated[int, Option(configured_for=_SAMPLING | _SEARCHING)] = 1
    add_special_tokens: Annotated[bool, Option()] = True
    repetition_penalty: Annotated[
        float,
        Option(
            configured_for=_CHOOSING,
            shapes_choice=True,
            rule=Rule(
                lambda value: bounds.is_within(
                    value, bounds.MIN_REPETITION_PENALTY, bounds.MAX_REPETITION_PENALTY
                ),
                f"a number from {bounds.MIN_REPETITION_PENALTY:g} to "
                f"{bounds.MAX_REPETITION_PENALTY:g}",
                "; 1 is neutral",
            ),
        ),
    ] = 1.0
    no_repeat_ngram_size: Annotated[
        int,
        Option(
            configured_for=_CHOOSING,
            shapes_choice=True,
            rule=Rule(
                lambda value: value <= bounds.MAX_NO_REPEAT_NGRAM_SIZE,
                f"at most {bounds.MAX_NO_REPEAT_NGRAM_SIZE}",
            ),
        ),
    ] = 0
    logit_bias: Annotated[
        tuple[tuple[int, float], ...],
        Option(kind=Kind.MAP, entries=Entries("max_logit_biases", "entries"), shapes_choice=True),
    ] = ()
    """(token id, amount added to its logit), by ascending id."""
    bad_words: Annotated[
        tuple[str, ...],
        Option(kind=Kind.LIST, entries=Entries("max_bad_words", "words"), shapes_choice=True),
    ] = ()
    """Words that are never completed, as given; the engine goes by `bad_word_ids`."""
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    """The words' token ids."""
    constraint: Annotated[Constraint | None, Option(kind=Kind.CONSTRAINT, shapes_choice=True)] = (
        None
    )
    """Language of every sequence's text; None for any text."""
    temperature: Annotated[
        float,
        _declare_sampling(
            _is_temperature,
            f"a number from {bounds.MIN_TEMPERATURE:g} to {bounds.MAX_TEMPERATURE:g} "
            "(for no randomness ask for `greedy`)",
            is_float=True,
        ),
    ] = 1.0
    top_k: Annotated[int, _SAMPLE] = 0
    """0 is off."""
    top_p: Annotated[float, _declare_sampling(lambda value: 0 < value <= 1, "in (0, 1]")] = 1.0
    min_p: Annotated[float, _declare_sampling(lambda value: 0 <= value <= 1, "in [0, 1]")] = 0.0
    typical_p: Annotated[float, _declare_sampling(lambda value: 0 < value <= 1, "in (0, 1]")] = 1.0
    epsilon_cutoff: Annotated[
        float, _declare_sampling(lambda value: 0 <= value < 1, "in [0, 1)")
    ] = 0.0
    eta_cutoff: Annotated[float, _declare_sampling(lambda value: 0 <= value < 1, "in [0, 1)")] = 0.0
    seed: Annotated[int, Option("decoding.sample")] = 0
    """64 bits, unsigned; only for sampling."""
    num_beams: Annotated[int, Option("decoding.beam_search", configured_for=_SEARCHING)] = 1
    length_penalty: Annotated[float, Option("decoding.beam_search", configured_for=_SEARCHING)] = (
        1.0
    )
    early_stopping: Annotated[EarlyStopping, Option("decoding.beam_search", Kind.CHOICE)] = (
        EarlyStopping.WHEN_ENOUGH
    )
    forced_token_ids: tuple[int, ...] = ()
    """The continuation to trace, for `Strategy.FORCED`; else the tokens that are given before the
    first one is chosen, as those that a branch repeats."""
    first_draw_sequence: int = 0
    """Index of the first sequence in the draws: of the parent's, for a branch."""
    configured: Configured = Configured()

    @property
    def num_rows(self) -> int:
        """Rows that the generation has in the batch: its sequences, or its beams."""
        if self.strategy is Strategy.BEAM_SEARCH:
            return self.num_beams
        return self.num_return_sequences


DECODING_OPTIONS = list_declared_options(Decoding)
"""Every option of `decoding` in the contract but the strategy itself."""


@dataclass(frozen=True, slots=True)
class TokenInput:
    """Text as token ids, used as they are."""

    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DecodingRequest:
    """Decoding settings as given: what is unset is None, or empty; see `Decoding`."""

    strategy: Strategy | None = None
    max_new_tokens: int | None = None
    fills_context: bool = False
    """True if an unset `max_new_tokens` that the generation config leaves unset too takes all
    positions that context and cache have left."""
    min_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    num_return_sequences: int | None = None
    add_special_tokens: bool | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str, ...] = ()
    constraint: Constraint | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    seed: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: EarlyStopping | None = None
    forced: str | TokenInput | None = None
    forced_prefix: tuple[int, ...] = ()
    """Tokens that are given before the first one is chosen."""
    first_draw_sequence: int = 0


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """The model's own generation config: what unset decoding fields take.

    Where the config says nothing, values are those that transformers' `generate` then takes.
    """

    do_sample: bool = False
    max_new_tokens: int | None = None
    max_length: int | None = None
    """The prompt's and the new tokens together; counts where `max_new_tokens` is unset."""
    min_new_tokens: int | None = None
    min_length: int = 0
    """The prompt's and the new tokens together; counts where `min_new_tokens` is unset."""
    stop: tuple[str, ...] = ()
    num_return_sequences: int = 1
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    eos_token_ids: tuple[int, ...] = ()
    configured: Configured = field(default_factory=Configured)


class TraceDetail(Enum):
    """Amount that is recorded of each step; a larger value includes the smaller ones."""

    TOKENS = 1
    DECISIONS = 2
    INTERNALS = 3


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """Trace options as the request asks for them; None for the default."""

    detail: TraceDetail | None = None
    num_candidates: int | None = None
    prompt: Annotated[bool, Option("trace")] = False
    """True if the prompt's own tokens are traced as well."""
    logprob_token_ids: Annotated[
        tuple[int, ...],
        Option(
            "trace",
            Kind.LIST,
            entries=Entries("max_candidates", "ids", are_token_ids=True, are_distinct=True),
        ),
    ] = ()
    """Tokens whose logprobs every step has, besides those of the candidates."""
    content: ContentPolicy | None = None
    """Content that is stored and exported."""


@dataclass(frozen=True, slots=True)
class TraceOptions(TraceRequest):
    """Trace settings of a generation, as granted: a request in which nothing is left open."""

    detail: Annotated[TraceDetail, Option("trace", Kind.CHOICE)] = TraceDetail.DECISIONS
    num_candidates: Annotated[int, Option("trace")] = 8
    content: Annotated[ContentPolicy, Option("trace", Kind.CHOICE)] = ContentPolicy.FULL


TRACE_OPTIONS = list_declared_options(TraceOptions)
"""Every option of `trace` in the contract."""


class FinishReason(Enum):
    """Reason for the end of a sequence or of a whole generation; the numbers are the contract's."""

    END_OF_SEQUENCE = 1
    STOP = 2
    LENGTH = 3
    CANCELLED = 4
    TIMEOUT = 5
    INTERRUPTED = 6
    FAILED = 7
