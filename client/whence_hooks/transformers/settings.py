"""Settings of a call of `generate` as the contract has them."""

from collections.abc import Iterable, Mapping
from typing import Any

from whence.v1.generation_pb2 import (
    BeamSearch,
    ConfiguredDecoding,
    Decoding,
    EarlyStopping,
    Greedy,
    Sample,
    SequenceBias,
    TokenInput,
)

_NAMES = {
    "SequenceBiasLogitsProcessor": "sequence_bias",
    "RepetitionPenaltyLogitsProcessor": "repetition_penalty",
    "NoRepeatNGramLogitsProcessor": "no_repeat_ngram",
    "NoBadWordsLogitsProcessor": "bad_words",
    "MinLengthLogitsProcessor": "min_length",
    "MinNewTokensLengthLogitsProcessor": "min_new_tokens",
    "ForcedBOSTokenLogitsProcessor": "forced_bos_token",
    "ForcedEOSTokenLogitsProcessor": "forced_eos_token",
    "SuppressTokensLogitsProcessor": "suppress_tokens",
    "SuppressTokensAtBeginLogitsProcessor": "begin_suppress_tokens",
    "TemperatureLogitsWarper": "temperature",
    "TopHLogitsWarper": "top_h",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
    "MinPLogitsWarper": "min_p",
    "TypicalLogitsWarper": "typical_p",
    "EpsilonLogitsWarper": "epsilon_cutoff",
    "EtaLogitsWarper": "eta_cutoff",
    "LogitNormalization": "renormalize_logits",
}
"""Names of processors in the record, by transformers' classes; others have their class's name."""

_EARLY_STOPPING = {
    True: EarlyStopping.EARLY_STOPPING_WHEN_ENOUGH,
    False: EarlyStopping.EARLY_STOPPING_HEURISTIC,
    "never": EarlyStopping.EARLY_STOPPING_NEVER,
}


def name_processors(processors: Iterable[object]) -> list[str]:
    """Return a distinct name for each processor, in their order."""
    names: list[str] = []
    for processor in processors:
        kind = type(processor).__name__
        name = _NAMES.get(kind, kind)
        count = sum(other == name or other.startswith(f"{name}#") for other in names)
        names.append(f"{name}#{count + 1}" if count else name)
    return names


def describe_decoding(config: Any, num_prompt_tokens: int) -> Decoding:
    """Return the settings in effect.

    Args:
        config: the generation config that `generate` prepared.
        num_prompt_tokens: length of the prompts, with their padding.
    """
    decoding = Decoding(
        max_new_tokens=max(config.max_length - num_prompt_tokens, 0),
        min_new_tokens=max(
            config.min_new_tokens or 0, (config.min_length or 0) - num_prompt_tokens, 0
        ),
        stop=_list(config.stop_strings),
        num_return_sequences=config.num_return_sequences,
        repetition_penalty=_or(config.repetition_penalty, 1.0),
        no_repeat_ngram_size=max(config.no_repeat_ngram_size or 0, 0),
    )
    if config.num_beams > 1:
        decoding.beam_search.CopyFrom(
            BeamSearch(
                num_beams=config.num_beams,
                length_penalty=_or(config.length_penalty, 1.0),
                early_stopping=_EARLY_STOPPING[config.early_stopping or False],
            )
        )
    elif config.do_sample:
        decoding.sample.CopyFrom(_describe_sampling(config))
    else:
        decoding.greedy.CopyFrom(Greedy())
    return decoding


def _describe_sampling(config: Any) -> Sample:
    return Sample(
        temperature=_or(config.temperature, 1.0),
        top_k=config.top_k or 0,
        top_p=min(_or(config.top_p, 1.0), 1.0),
        min_p=config.min_p or 0.0,
        typical_p=min(_or(config.typical_p, 1.0), 1.0),
        epsilon_cutoff=_within_one(config.epsilon_cutoff),
        eta_cutoff=_within_one(config.eta_cutoff),
    )


def describe_configured(config: Any, num_prompt_tokens: int) -> ConfiguredDecoding:
    """Return the settings in effect that only a generation config has."""
    biases = config.sequence_bias or ()
    pairs = biases.items() if isinstance(biases, Mapping) else biases
    begins_late = num_prompt_tokens <= 1 and config.forced_bos_token_id is not None
    return ConfiguredDecoding(
        sequence_biases=[SequenceBias(token_ids=ids, bias=bias) for ids, bias in pairs],
        bad_words=[TokenInput(token_ids=word) for word in config.bad_words_ids or ()],
        suppress_token_ids=_list(config.suppress_tokens),
        begin_suppress_token_ids=_list(config.begin_suppress_tokens),
        begin_suppress_index=int(begins_late) if config.begin_suppress_tokens else 0,
        forced_bos_token_id=config.forced_bos_token_id,
        forced_eos_token_ids=_list(config.forced_eos_token_id),
        top_h=(config.top_h or 0.0) if config.do_sample else 0.0,
        renormalize_logits=bool(config.renormalize_logits),
    )


def list_eos_token_ids(config: Any) -> list[int]:
    """Return the ids that end a sequence."""
    return _list(config.eos_token_id)


def _or(value: Any, neutral: float) -> float:
    return neutral if value is None else value


def _within_one(value: float | None) -> float:
    return value if value is not None and 0 < value < 1 else 0.0


def _list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
