"""Tables of all fields of transformers' GenerationConfig, by their treatment.

docs/generation-config.md lists them. A test compares the list and these tables with the fields of
the installed transformers, so that a new field fails the test.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from whence_server.domain import bounds
from whence_server.domain.limits import Limits

MAX_INTEGER = 2**31 - 1
MAX_NUMBER = 3.4e38
"""Bound of numbers, which are recorded as float32."""
_LIMITS = Limits()


class Rule(NamedTuple):
    """Values of a field that can be applied."""

    allows: Callable[[Any], bool]
    text: str
    """End of the sentence "it must be ..."."""


class Refusal(NamedTuple):
    """Values of a field that would change the tokens and are not supported."""

    is_set: Callable[[Any], bool]
    instead: str


def _is_int(value: Any) -> bool:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and abs(value) <= MAX_INTEGER


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= MAX_NUMBER


def _is_id(value: Any) -> bool:
    return _is_int(value) and value >= 0


def _is_float_or_neutral(value: Any) -> bool:
    """Say whether a number is a float, as `generate` demands of those that it applies."""
    return isinstance(value, float) or value == 1


def _are_ids(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_id, value))


def _is_sequence(value: Any) -> bool:
    return _are_ids(value) and bool(value)


def _is_bias(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != len(("token ids", "bias")):
        return False
    ids, bias = value
    is_number = isinstance(bias, float) and abs(bias) <= bounds.MAX_LOGIT_BIAS
    return _is_sequence(ids) and (is_number or bias == -math.inf)


def _are_stops(value: Any) -> bool:
    stops = [value] if isinstance(value, str) else value
    return (
        isinstance(stops, list | tuple)
        and 0 < len(stops) <= _LIMITS.max_stop_strings
        and all(
            isinstance(stop, str) and 0 < len(stop) <= _LIMITS.max_stop_characters for stop in stops
        )
    )


def _are_all(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(holds, value))


_INTEGER = Rule(_is_int, "a whole number")
_POSITIVE = Rule(lambda v: _is_int(v) and v >= 1, "a whole number, at least 1")
_NUMBER = Rule(_is_number, "a number that float32 can hold")
_SWITCH = Rule(lambda v: isinstance(v, bool), "true or false")
_ID_OR_IDS = Rule(lambda v: _is_id(v) or _is_sequence(v), "a token id, or a list of some")
_IDS = Rule(_are_ids, "a list of token ids")
_WITH_A_POINT = "written with a decimal point (2.0, not 2)"

APPLIED: dict[str, Rule] = {
    "max_length": _POSITIVE,
    "max_new_tokens": _POSITIVE,
    "min_length": _INTEGER,
    "min_new_tokens": _INTEGER,
    "early_stopping": Rule(lambda v: isinstance(v, bool) or v == "never", 'true, false or "never"'),
    "stop_strings": Rule(
        _are_stops,
        f"a string or a list of at most {_LIMITS.max_stop_strings}, not empty, each of 1 to "
        f"{_LIMITS.max_stop_characters} characters",
    ),
    "do_sample": _SWITCH,
    "num_beams": _POSITIVE,
    "temperature": _NUMBER,
    "top_k": Rule(lambda v: _is_int(v) and v >= 0, "a whole number, at least 0, which is off"),
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "top_h": Rule(lambda v: _is_number(v) and 0 < v <= 1, "in (0, 1]"),
    "typical_p": _NUMBER,
    "epsilon_cutoff": _NUMBER,
    "eta_cutoff": _NUMBER,
    "repetition_penalty": Rule(
        lambda v: (
            _is_number(v)
            and _is_float_or_neutral(v)
            and bounds.is_within(v, bounds.MIN_REPETITION_PENALTY, bounds.MAX_REPETITION_PENALTY)
        ),
        f"a number from {bounds.MIN_REPETITION_PENALTY:g} to {bounds.MAX_REPETITION_PENALTY:g}, "
        f"{_WITH_A_POINT}",
    ),
    "length_penalty": Rule(
        lambda v: _is_number(v) and abs(v) <= bounds.MAX_LENGTH_PENALTY,
        f"a number from -{bounds.MAX_LENGTH_PENALTY:g} to {bounds.MAX_LENGTH_PENALTY:g}",
    ),
    "no_repeat_ngram_size": Rule(
        lambda v: _is_int(v) and v <= bounds.MAX_NO_REPEAT_NGRAM_SIZE,
        f"a whole number, at most {bounds.MAX_NO_REPEAT_NGRAM_SIZE}",
    ),
    "bad_words_ids": Rule(
        lambda v: _are_all(v, _is_sequence), "a list, not empty, of lists of token ids, none empty"
    ),
    "sequence_bias": Rule(
        lambda v: _are_all(v, _is_bias),
        "a list, not empty, of pairs: a list of token ids, and a number from "
        f"-{bounds.MAX_LOGIT_BIAS:g} to {bounds.MAX_LOGIT_BIAS:g} or -Infinity, {_WITH_A_POINT}",
    ),
    "renormalize_logits": _SWITCH,
    "forced_bos_token_id": Rule(_is_id, "a token id"),
    "forced_eos_token_id": _ID_OR_IDS,
    "suppress_tokens": _IDS,
    "begin_suppress_tokens": _IDS,
    "num_return_sequences": Rule(
        lambda v: _is_int(v) and 1 <= v <= _LIMITS.max_return_sequences,
        f"a whole number from 1 to {_LIMITS.max_return_sequences}",
    ),
    "eos_token_id": Rule(
        lambda v: _is_int(v) or (isinstance(v, list) and bool(v) and all(map(_is_int, v))),
        "a token id, or a list of some, not empty",
    ),
}
"""Fields that affect tokens and are applied, with transformers' meaning."""

IN_SAMPLING: dict[str, Rule] = {
    "temperature": Rule(
        lambda v: (
            _is_float_or_neutral(v)
            and bounds.is_within(v, bounds.MIN_TEMPERATURE, bounds.MAX_TEMPERATURE)
        ),
        f"from {bounds.MIN_TEMPERATURE:g} to {bounds.MAX_TEMPERATURE:g}, {_WITH_A_POINT}, where "
        "do_sample is true",
    ),
    "top_p": Rule(lambda v: v > 0, "above 0 where do_sample is true"),
    "min_p": Rule(lambda v: 0 <= v <= 1, "in [0, 1] where do_sample is true"),
    "typical_p": Rule(lambda v: v > 0, "above 0 where do_sample is true"),
}
"""Ranges that are checked only for sampling, as in `generate`, and in sampling requests."""


def _is_given(value: Any) -> bool:
    return value is not None


def _is_true(value: Any) -> bool:
    return value is not None and value is not False


def _make_differs(neutral: float) -> Callable[[Any], bool]:
    return lambda value: value is not None and value != neutral


_REMOVE = "remove it"
REFUSED: dict[str, Refusal] = {
    "max_time": Refusal(_is_given, "remove it, and let requests set max_duration"),
    "guidance_scale": Refusal(_make_differs(1), _REMOVE),
    "watermarking_config": Refusal(_is_given, _REMOVE),
    "token_healing": Refusal(_is_true, _REMOVE),
    "encoder_repetition_penalty": Refusal(_make_differs(1), "use repetition_penalty"),
    "encoder_no_repeat_ngram_size": Refusal(_make_differs(0), "use no_repeat_ngram_size"),
    "remove_invalid_values": Refusal(
        _is_true, "remove it: a generation with non-finite logits fails with a message"
    ),
    "exponential_decay_length_penalty": Refusal(_is_given, _REMOVE),
    "is_assistant": Refusal(_is_true, "remove it: assistant models are not supported"),
    "assistant_ensemble_weight": Refusal(_is_given, _REMOVE),
    "penalty_alpha": Refusal(_make_differs(0), "remove it: contrastive search is not offered"),
    "dola_layers": Refusal(_is_given, "remove it: DoLa decoding is not offered"),
    "diversity_penalty": Refusal(_make_differs(0), "remove it: group beam search is not offered"),
    "num_beam_groups": Refusal(_make_differs(1), "remove it: group beam search is not offered"),
    "constraints": Refusal(_is_given, "remove it: constrained beam search is not offered"),
    "force_words_ids": Refusal(_is_given, "remove it: constrained beam search is not offered"),
    "low_memory": Refusal(_is_true, "remove it: transformers itself refuses beams with it"),
    "cache_implementation": Refusal(
        lambda value: value == "quantized", "remove it: rounded keys and values give other tokens"
    ),
    "compile_config": Refusal(_is_given, "remove it: transformers reads it from no file"),
}
"""Fields that are refused at values that would change the tokens."""

HARMLESS: dict[str, str] = {
    "use_mtp": "speculative decoding: speed alone",
    "prompt_lookup_num_tokens": "speculative decoding: speed alone",
    "max_matching_ngram_size": "speculative decoding: speed alone",
    "assistant_early_exit": "speculative decoding: speed alone",
    "num_assistant_tokens": "speculative decoding: speed alone",
    "num_assistant_tokens_schedule": "speculative decoding: speed alone",
    "assistant_confidence_threshold": "speculative decoding: speed alone",
    "assistant_lookbehind": "speculative decoding: speed alone",
    "target_lookbehind": "speculative decoding: speed alone",
    "speculation_type": "speculative decoding: speed alone",
    "use_cache": "the server always has a cache",
    "cache_config": "the server's cache is its own",
    "max_cache_len": "the server's cache is its own",
    "prefill_chunk_size": "`--prefill-chunk-tokens` takes its place",
    "continuous_batching_config": "the server's batching is its own",
    "disable_compile": "nothing is compiled by `torch.compile`",
    "output_attentions": "a request says what is recorded",
    "output_hidden_states": "a request says what is recorded",
    "output_scores": "a request says what is recorded",
    "output_logits": "a request says what is recorded",
    "return_dict_in_generate": "the contract says what is returned",
    "pad_token_id": "nothing is padded with tokens",
    "bos_token_id": "`generate` uses it for empty prompts, which are refused",
    "decoder_start_token_id": "of models with an encoder, which are refused",
    "transformers_version": "which release wrote the file",
    "_from_model_config": "which file transformers read",
}
"""Fields that affect no token, each with the reason."""
