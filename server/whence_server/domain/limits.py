"""The bounds that one server keeps, so that no request can take it away from the others."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for, and how many may ask at once."""

    max_queue: int = 1024
    """Sequences that may wait for their prefill; the next is RESOURCE_EXHAUSTED."""
    max_prompt_tokens: int = 0
    """0 is the model's context less one."""
    max_batch_size: int = 64
    """Sequences decoded together: no request can have more."""
    max_cache_tokens: int = 131_072
    """Positions of all running sequences: no request can need more."""
    default_max_new_tokens: int = 256
    max_return_sequences: int = 64
    max_messages: int = 4096
    """Of a conversation."""
    max_stop_strings: int = 64
    max_stop_characters: int = 1024
    max_stop_token_ids: int = 64
    max_logit_biases: int = 1024
    max_bad_words: int = 1024
    max_bad_word_characters: int = 1024
    max_template_arguments_bytes: int = 1 << 20
    max_template_s: float = 2.0
    """Processor time for a chat template to make a prompt."""
    max_text_s: float = 60.0
    """Processor time for all of a request's text; more in proportion beyond 4 MiB."""
    max_template_memory_bytes: int = 256 << 20
    """Memory beyond what the text process has when it is idle."""
    max_waiting_text_bytes: int = 64 << 20
    """Requests that wait for the text process; the next is RESOURCE_EXHAUSTED."""
    default_candidates: int = 8
    max_candidates: int = 128
    """Also the most token ids whose logprobs a request can ask for."""
    max_labels: int = 32
    max_label_characters: int = 256
    max_disconnect_grace_s: int = 3600
