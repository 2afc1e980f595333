"""Generations that cannot be recorded, each by its name."""

from typing import Any

from transformers.generation import GenerationMode

_RECORDED_MODES = frozenset(
    {GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH}
)


class NotRecordableError(ValueError):
    """A model or a call of `generate` is of a kind that `record_generate` cannot record."""


def check_mode(mode: GenerationMode) -> None:
    """Refuse strategies whose steps the hook does not see.

    Raises:
        NotRecordableError: the strategy is another than greedy, sampling and beam search.
    """
    if mode not in _RECORDED_MODES:
        raise NotRecordableError(
            f"{mode.value} is not recorded: record_generate records greedy_search, sample and "
            "beam_search; generate outside of it, or pass skip_unsupported=True"
        )


def check_arguments(arguments: dict[str, Any]) -> None:
    """Refuse arguments of `generate` that replace its decoding loop.

    Raises:
        NotRecordableError: one of them is set.
    """
    for name, what in _REPLACES_LOOP.items():
        if arguments.get(name) is not None:
            raise NotRecordableError(
                f"generate({name}=...) is not recorded, as {what}; generate outside of "
                "record_generate, or pass skip_unsupported=True"
            )
    if arguments.get("cache_implementation") == "paged":
        raise NotRecordableError(
            "generate(cache_implementation='paged') is not recorded, as continuous batching "
            "decodes; generate outside of record_generate, or pass skip_unsupported=True"
        )


def check_input(input_ids: Any, config: Any) -> None:
    """Refuse prompts whose token ids are not known.

    Raises:
        NotRecordableError: the prompt is given as embeddings, or its last token is healed.
    """
    if input_ids is None or input_ids.dim() != 2 or input_ids.is_floating_point():
        raise NotRecordableError(
            "a prompt without token ids (inputs_embeds, images) is not recorded: give input_ids, "
            "or pass skip_unsupported=True"
        )
    if config.token_healing:
        raise NotRecordableError(
            "generate(token_healing=True) is not recorded, as it replaces tokens of the prompt; "
            "generate outside of record_generate, or pass skip_unsupported=True"
        )


_REPLACES_LOOP = {
    "custom_generate": "other code than transformers' decodes",
    "assistant_model": "assisted generation accepts several tokens at once",
    "prompt_lookup_num_tokens": "assisted generation accepts several tokens at once",
}
