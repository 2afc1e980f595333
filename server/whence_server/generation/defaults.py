"""Defaults of unset decoding fields, from the model's generation config."""

import dataclasses
from typing import Any

from whence_server.domain.decoding import (
    DECODING_OPTIONS,
    Configured,
    DecodingRequest,
    GenerationDefaults,
    Strategy,
)
from whence_server.domain.errors import FieldViolation
from whence_server.domain.limits import Limits
from whence_server.domain.options import Option
from whence_server.generation.checks import Faults


def resolve_value(
    option: Option, request: DecodingRequest, defaults: GenerationDefaults, strategy: Strategy
) -> Any:
    """Return the value of an option that applies.

    It is the request's; where that is unset, the model's generation config's, if it has a say for
    this strategy; else the neutral one.
    """
    if option.strategy_name not in {"", strategy.value}:
        return option.neutral
    given = getattr(request, option.name)
    if given is not None and given != ():
        return given
    if strategy in option.configured_for:
        return getattr(defaults, option.name)
    return option.neutral


def get_default_max_new_tokens(
    request: DecodingRequest, defaults: GenerationDefaults, num_prompt_tokens: int, limits: Limits
) -> int:
    """Return the default of `max_new_tokens`, at least 1; the context may have less room."""
    if defaults.max_new_tokens is not None:
        return defaults.max_new_tokens
    if defaults.max_length is not None:
        return max(defaults.max_length - num_prompt_tokens, 1)
    if request.fills_context:
        num_rows = request.num_beams or request.num_return_sequences or 1
        return max(limits.max_cache_tokens // num_rows - num_prompt_tokens, 1)
    return limits.default_max_new_tokens


def get_default_min_new_tokens(defaults: GenerationDefaults, num_prompt_tokens: int) -> int:
    """Return the default of `min_new_tokens`."""
    if defaults.min_new_tokens is not None:
        return defaults.min_new_tokens
    return max(defaults.min_length - num_prompt_tokens, 0)


def check_default_length(
    faults: Faults, request: DecodingRequest, defaults: GenerationDefaults, num_prompt_tokens: int
) -> None:
    """Add a fault if the prompt fills the generation config's max_length, as in `generate`."""
    longest = defaults.max_length
    counts = request.max_new_tokens is None and defaults.max_new_tokens is None
    if counts and longest is not None:
        faults.expect(
            num_prompt_tokens < longest,
            "decoding.max_new_tokens",
            f"must be set: the prompt has {num_prompt_tokens} tokens, and the model's generation "
            f"config sets max_length to {longest}, which counts the prompt",
        )


def select_configured(
    request: DecodingRequest,
    defaults: GenerationDefaults,
    num_prompt_tokens: int,
    *,
    sampling: bool,
) -> Configured:
    """Return the processing that only the generation config can turn on, as it applies here.

    As in `generate`, the first token is forced only after a prompt of one token, and
    `begin_suppress_tokens` then applies at the second step. A request's `logit_bias` replaces the
    config's `sequence_bias`.
    """
    configured = defaults.configured
    forces_first = num_prompt_tokens == 1 and configured.forced_bos_token_id is not None
    return dataclasses.replace(
        configured,
        sequence_biases=() if request.logit_bias else configured.sequence_biases,
        forced_bos_token_id=configured.forced_bos_token_id if forces_first else None,
        begin_suppress_index=int(forces_first and bool(configured.begin_suppress_token_ids)),
        top_h=configured.top_h if sampling else 0.0,
    )


def say_where_from(faults: Faults, request: DecodingRequest) -> None:
    """Add to faults of unset fields that their values are from the model's generation config."""
    for i, violation in enumerate(faults.violations):
        name = violation.field.rpartition(".")[2].partition("[")[0]
        if name in _FROM_CONFIG and getattr(request, name) in {None, ()}:
            faults.violations[i] = FieldViolation(
                violation.field,
                f"{violation.description} (unset in the request: the model's generation config)",
            )


_FROM_CONFIG = {option.name for option in DECODING_OPTIONS if option.configured_for} - {"num_beams"}
"""Fields that a generation config may set to what this server or this strategy does not take.

A number of beams that it sets is held against the batch when the model is loaded.
"""
