"""What `generate` takes: one declaration for the synchronous and the asynchronous client."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, TypeAlias, TypedDict
from uuid import UUID

Prompt: TypeAlias = str | Sequence[int]
"""Text, or token ids that are used as they are."""


class ChatMessage(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `generate`; None is the same as leaving an option out.

    What is left out takes the model's own generation config. At most one way of choosing
    tokens may be asked for: greedy, sampling, beam search or forced; naming any of the
    options of one asks for it.
    """

    messages: Sequence[ChatMessage] | None
    """A conversation for the model's chat template, instead of a prompt."""
    template_arguments: Mapping[str, object] | None
    """Variables for the chat template, such as `tools`; values as in JSON, in their order."""
    template_name: str | None
    """One of the model's chat templates, where it has several: see `Model.chat_templates`."""
    model: str | None
    add_special_tokens: bool | None
    """Whether the tokenizer adds its special tokens to a text prompt."""

    greedy: bool | None
    """Always take the most likely token."""
    sample: bool | None
    """Sample; implied by any of the next eight."""
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    epsilon_cutoff: float | None
    eta_cutoff: float | None
    seed: int | None
    """64 bits, unsigned. Left out, the server picks one: see `started.effective_decoding`."""
    num_beams: int | None
    """Beam search; implied by the next two as well."""
    length_penalty: float | None
    early_stopping: Literal["when_enough", "never", "heuristic"] | None
    forced: Prompt | None
    """Choose nothing: trace this continuation token by token."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    stop: str | Sequence[str] | None
    """Generation ends before any of these; they are not part of the output."""
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    n: int | None
    """Sequences to return: samples, or the best beams."""
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    logit_bias: Mapping[int, float] | None
    """Added to the logits of these token ids."""
    bad_words: str | Sequence[str] | None
    """Texts that are never completed."""

    detail: Literal["tokens", "decisions", "internals"] | None
    """How much is traced of each step."""
    num_candidates: int | None
    """Candidates traced for each step; 0 for none."""
    trace_prompt: bool | None
    """Trace the prompt's own tokens as well."""

    generation_id: str | UUID | None
    """A UUID; the client makes one where none is given. An equal request under the same id
    joins that generation and replays it from its first event."""
    labels: Mapping[str, str] | None
    disconnect_grace_s: float | None
    """How long the generation goes on without a reader; 30 s if left out, which leaves the
    client time to resume."""
    max_duration_s: float | None
    """Ends the generation with the finish reason "timeout"."""

    timeout_s: float | None
    """Ends the reading with DeadlineExceededError, resumed calls included."""
    metadata: Mapping[str, str] | None
    """gRPC metadata of the calls, such as a `traceparent`."""


class FilterOptions(TypedDict, total=False):
    """Which recorded generations are meant; None, and what is left out, matches any."""

    start_after: datetime | None
    """With a time zone, like the next."""
    start_before: datetime | None
    model: str | None
    trace_id: str | None
    labels: Mapping[str, str] | None
    """All of them, with these values."""
