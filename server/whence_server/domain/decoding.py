"""How the tokens of a generation are chosen: what is asked for, and what is applied."""

from dataclasses import dataclass
from enum import Enum

MAX_SEED = 2**64 - 1


class Strategy(Enum):
    """How a step's token is chosen from its distribution."""

    GREEDY = "greedy"
    SAMPLE = "sample"
    BEAM_SEARCH = "beam_search"
    FORCED = "forced"


class EarlyStopping(Enum):
    """When beam search ends, as transformers' `early_stopping` says it."""

    WHEN_ENOUGH = "when_enough"
    NEVER = "never"
    HEURISTIC = "heuristic"


@dataclass(frozen=True, slots=True)
class Configured:
    """Processing that only a model's generation config can ask for.

    Names and meaning are those of transformers' `GenerationConfig`; neutral values are off.
    """

    sequence_biases: tuple[tuple[tuple[int, ...], float], ...] = ()
    """(token ids, amount added to the last one's logit where the others come before it)."""
    suppress_token_ids: tuple[int, ...] = ()
    """Never chosen."""
    begin_suppress_token_ids: tuple[int, ...] = ()
    """Not chosen at step `begin_suppress_index`."""
    begin_suppress_index: int = 0
    forced_bos_token_id: int | None = None
    """The first token; for prompts of one token."""
    forced_eos_token_ids: tuple[int, ...] = ()
    """The last token that the length allows is one of these."""
    top_h: float = 0.0
    """Keeps the likeliest tokens up to this share of the entropy; 0 is off."""
    renormalize_logits: bool = False
    """Logits become logprobs after all other processors."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """A request's decoding settings as really applied: nothing is left to a default.

    Settings that the strategy does not use hold their neutral value. Probabilities and
    penalties follow transformers' `GenerationConfig` in name and meaning.
    """

    strategy: Strategy
    max_new_tokens: int
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    """Stop strings; the front decides on them, the engine never sees text."""
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    """The model's end-of-sequence ids; kept also where `ignore_eos` is set."""
    ignore_eos: bool = False
    num_return_sequences: int = 1
    add_special_tokens: bool = True
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, amount added to its logit), by ascending id."""
    bad_words: tuple[str, ...] = ()
    """Words that are never completed, as given; the engine goes by `bad_word_ids`."""
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    """The words' token ids."""
    temperature: float = 1.0
    top_k: int = 0
    """0 is off."""
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    seed: int = 0
    """64 bits, unsigned; only for sampling."""
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = EarlyStopping.WHEN_ENOUGH
    forced_token_ids: tuple[int, ...] = ()
    """The continuation to trace; only for `Strategy.FORCED`."""
    configured: Configured = Configured()

    @property
    def num_rows(self) -> int:
        """Rows of the batch that it takes: its sequences, or its beams."""
        if self.strategy is Strategy.BEAM_SEARCH:
            return self.num_beams
        return self.num_return_sequences


class TraceDetail(Enum):
    """How much is recorded of each step; a larger value contains the smaller."""

    TOKENS = 1
    DECISIONS = 2
    INTERNALS = 3


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What is recorded of a generation, as granted."""

    detail: TraceDetail = TraceDetail.DECISIONS
    num_candidates: int = 8
    prompt: bool = False
    """Whether the prompt's own tokens are traced as well."""


class FinishReason(Enum):
    """Why a sequence, or a generation as a whole, ended; values as in the contract."""

    END_OF_SEQUENCE = 1
    STOP = 2
    LENGTH = 3
    CANCELLED = 4
    TIMEOUT = 5
    INTERRUPTED = 6
    FAILED = 7
