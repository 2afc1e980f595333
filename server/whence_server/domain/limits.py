"""Limits on requests, so that none can starve the others."""

from dataclasses import dataclass

from whence_server.domain.content import ContentPolicy


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Limits on all generations of one caller; 0 for none.

    Without authentication all calls are of one caller.
    """

    max_generations: int = 0
    """Generations that run or wait at one time."""
    max_queue: int = 0
    """Sequences that wait for prefill at one time."""
    tokens_per_minute: int = 0
    """Tokens of prompts and outputs."""
    max_stored_bytes: int = 0
    """Bytes on record."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on one request, and on all waiting requests together."""

    max_queue: int = 1024
    """Sequences that may wait for prefill; further requests get RESOURCE_EXHAUSTED."""
    max_prompt_tokens: int = 0
    """Tokens of a prompt; 0 allows the model's context length minus 1."""
    max_batch_size: int = 64
    """Sequences that decode together; also the bound for one request."""
    max_cache_tokens: int = 131_072
    """Cache positions of all running sequences; also the bound for one request."""
    default_max_new_tokens: int = 256
    max_return_sequences: int = 64
    max_messages: int = 4096
    """Messages of one conversation."""
    max_content_parts: int = 16_384
    """Parts of the contents of one conversation."""
    max_tool_calls: int = 4096
    """Tool calls of one conversation."""
    max_stop_strings: int = 64
    max_stop_characters: int = 1024
    max_stop_token_ids: int = 64
    max_logit_biases: int = 1024
    max_bad_words: int = 1024
    max_bad_word_characters: int = 1024
    max_constraint_bytes: int = 64 << 10
    """Bytes of a constraint, which every record of a generation holds."""
    max_constraint_s: float = 10.0
    """Seconds to compile a constraint."""
    max_constraint_memory_bytes: int = 256 << 20
    """Memory that compiling a constraint may take in the text process."""
    max_template_arguments_bytes: int = 1 << 20
    max_upstream_parameters_bytes: int = 64 << 10
    """Bytes of the fields for an upstream's own API, which every record of a generation holds."""
    max_template_s: float = 2.0
    """CPU seconds to render a chat template."""
    max_text_s: float = 60.0
    """CPU seconds to prepare a request's text; grows in proportion beyond 4 MiB."""
    max_template_memory_bytes: int = 256 << 20
    """Memory of the text process above its idle memory."""
    max_waiting_text_bytes: int = 64 << 20
    """Total size of the requests that wait for the text process; further ones get
    RESOURCE_EXHAUSTED."""
    default_candidates: int = 8
    max_candidates: int = 128
    """Also the most token ids whose logprobs a request can ask for."""
    max_labels: int = 32
    max_label_characters: int = 256
    max_disconnect_grace_s: int = 3600
    default_disconnect_grace_s: float = 60.0
    """Grace of a request that has a generation id and sets none."""
    longest_grace_s: float = 3600.0
    """Grace of requests that ask for more, up to `max_disconnect_grace_s`."""
    content: ContentPolicy = ContentPolicy.FULL
    """Most content of a generation that is stored and exported."""
    per_caller: CallerLimits = CallerLimits()

    @property
    def stored_bytes(self) -> int:
        """Bytes that one caller may have on record; 0 for no limit."""
        return self.per_caller.max_stored_bytes
