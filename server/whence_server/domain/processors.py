"""Logits processors that a request's settings turn on, and their order."""

from collections.abc import Callable

from whence_server.domain.decoding import Decoding, Strategy

CONSTRAINT = "constraint"
"""Name of the processor that removes what a request's constraint does not allow."""

_CONSTRAINT: dict[str, Callable[[Decoding], bool]] = {
    CONSTRAINT: lambda d: d.constraint is not None,
}
"""Applied first, so that what it removes is counted in the model's own distribution."""
_BEFORE_WARPERS: dict[str, Callable[[Decoding], bool]] = {
    "sequence_bias": lambda d: bool(d.configured.sequence_biases),
    "logit_bias": lambda d: bool(d.logit_bias),
    "repetition_penalty": lambda d: d.repetition_penalty != 1.0,
    "no_repeat_ngram": lambda d: d.no_repeat_ngram_size > 0,
    "bad_words": lambda d: bool(d.bad_word_ids),
    "min_new_tokens": lambda d: d.min_new_tokens > 0,
    "forced_bos_token": lambda d: d.configured.forced_bos_token_id is not None,
    "forced_eos_token": lambda d: bool(d.configured.forced_eos_token_ids),
    "suppress_tokens": lambda d: bool(d.configured.suppress_token_ids),
    "begin_suppress_tokens": lambda d: bool(d.configured.begin_suppress_token_ids),
}
_WARPERS: dict[str, Callable[[Decoding], bool]] = {
    "temperature": lambda d: d.temperature != 1.0,
    "top_h": lambda d: d.configured.top_h > 0.0,
    "top_k": lambda d: d.top_k > 0,
    "top_p": lambda d: d.top_p < 1.0,
    "min_p": lambda d: d.min_p > 0.0,
    "typical_p": lambda d: d.typical_p < 1.0,
    "epsilon_cutoff": lambda d: d.epsilon_cutoff > 0.0,
    "eta_cutoff": lambda d: d.eta_cutoff > 0.0,
}
"""Processors that only sampling applies."""
_AFTER_WARPERS: dict[str, Callable[[Decoding], bool]] = {
    "renormalize_logits": lambda d: d.configured.renormalize_logits,
}

PROCESSORS = (*_CONSTRAINT, *_BEFORE_WARPERS, *_WARPERS, *_AFTER_WARPERS)
"""Every processor, in order of application."""


def list_processor_names(decoding: Decoding) -> tuple[str, ...]:
    """Return the names of the processors that change a step's distribution, in order.

    The constraint comes first. Then the order is that of transformers' `generate`: processors that
    penalise or forbid tokens come before the sampling warpers. A setting at its neutral value adds
    no processor. A forced continuation has none: it is scored under the model's own distribution.
    """
    if decoding.strategy is Strategy.FORCED:
        return ()
    warpers = _WARPERS if decoding.strategy is Strategy.SAMPLE else {}
    wanted = _CONSTRAINT | _BEFORE_WARPERS | warpers | _AFTER_WARPERS
    return tuple(name for name, is_on in wanted.items() if is_on(decoding))
