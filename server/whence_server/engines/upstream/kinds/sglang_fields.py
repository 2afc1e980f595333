"""Fields that SGLang reads of a request; it passes over others without a word.

From `GenerateReqInput` and `ChatCompletionRequest` of its sources, version 0.5.18.
"""

from collections.abc import Collection

from whence_server.domain.errors import FieldViolation, InvalidRequestError

SAMPLING_PARAMS = frozenset(
    {
        *("max_new_tokens", "min_new_tokens", "stop", "stop_token_ids", "stop_regex"),
        *("ignore_eos", "n", "repetition_penalty", "frequency_penalty", "presence_penalty"),
        *("logit_bias", "temperature", "top_k", "top_p", "min_p", "sampling_seed"),
        *("regex", "json_schema", "ebnf", "structural_tag", "custom_params"),
        *("skip_special_tokens", "spaces_between_special_tokens"),
    }
)
"""Fields that /generate reads in `sampling_params` alone."""

_OF_BOTH = frozenset(
    {
        *("rid", "lora_path", "session_params", "session_id", "custom_logit_processor"),
        *("priority", "extra_key", "cache_salt", "custom_labels", "return_hidden_states"),
        *("return_routed_experts", "routed_experts_start_len", "return_indexer_topk"),
        *("routed_dp_rank", "data_parallel_rank", "disagg_prefill_dp_rank", "routing_key"),
        *("bootstrap_host", "bootstrap_port", "bootstrap_room"),
        *("max_thinking_tokens", "max_dynamic_patch", "min_dynamic_patch", "use_audio_in_video"),
        "no_logs",
    }
)
GENERATE = _OF_BOTH | {
    *("image_data", "video_data", "audio_data", "modalities", "conversation_id", "log_metrics"),
    *("return_entropy", "return_sampling_mask", "token_ids_logprob", "require_reasoning"),
}
"""Fields that /generate reads beside `sampling_params`."""
CHAT = _OF_BOTH | {
    *("frequency_penalty", "presence_penalty", "tool_choice", "parallel_tool_calls"),
    *("reasoning_effort", "reasoning", "separate_reasoning", "stream_reasoning", "task"),
    *("user", "response_format", "chat_template_kwargs", "continue_final_message"),
    *("stop_regex", "regex", "ebnf", "custom_params", "skip_special_tokens"),
    "service_tier",
}
"""Fields that /v1/chat/completions reads beside those that whence itself sends."""


def check_known(given: Collection[str], known: Collection[str], title: str) -> None:
    """Refuse fields that would have no effect.

    Args:
        given: names of the caller's fields.
        known: names of the fields that the route reads.
        title: the kind of upstream, for errors.

    Raises:
        InvalidRequestError: names each field.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        rule = f"is no field that the upstream ({title}) knows; it would have no effect"
        raise InvalidRequestError(*(FieldViolation(name, rule) for name in unknown))
