"""Which logits processors a request's settings call for, and in which order."""

from whence_server.domain.decoding import Decoding, Strategy


def list_processor_names(decoding: Decoding) -> tuple[str, ...]:
    """Names the processors that will change a step's distribution, in order of application.

    The order is that of transformers' `generate`: what penalises or forbids comes first,
    the sampling warpers last. A setting at its neutral value adds no processor, and a forced
    continuation is read under the model's own distribution, with none.
    """
    if decoding.strategy is Strategy.FORCED:
        return ()
    configured = decoding.configured
    wanted: tuple[tuple[str, bool], ...] = (
        ("sequence_bias", bool(configured.sequence_biases)),
        ("logit_bias", bool(decoding.logit_bias)),
        ("repetition_penalty", decoding.repetition_penalty != 1.0),
        ("no_repeat_ngram", decoding.no_repeat_ngram_size > 0),
        ("bad_words", bool(decoding.bad_word_ids)),
        ("min_new_tokens", decoding.min_new_tokens > 0),
        ("forced_bos_token", configured.forced_bos_token_id is not None),
        ("forced_eos_token", bool(configured.forced_eos_token_ids)),
        ("suppress_tokens", bool(configured.suppress_token_ids)),
        ("begin_suppress_tokens", bool(configured.begin_suppress_token_ids)),
    )
    warpers = (
        ("temperature", decoding.temperature != 1.0),
        ("top_h", configured.top_h > 0.0),
        ("top_k", decoding.top_k > 0),
        ("top_p", decoding.top_p < 1.0),
        ("min_p", decoding.min_p > 0.0),
        ("typical_p", decoding.typical_p < 1.0),
        ("epsilon_cutoff", decoding.epsilon_cutoff > 0.0),
        ("eta_cutoff", decoding.eta_cutoff > 0.0),
    )
    if decoding.strategy is Strategy.SAMPLE:
        wanted += warpers
    wanted += (("renormalize_logits", configured.renormalize_logits),)
    return tuple(name for name, on in wanted if on)
