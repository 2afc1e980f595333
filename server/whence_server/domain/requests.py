"""A generation as it was asked for: unset fields are None until the model fills them in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from whence_server.domain.decoding import EarlyStopping, Strategy, TraceDetail


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatInput:
    """A conversation for the model's chat template."""

    messages: tuple[ChatMessage, ...]
    template_arguments_json: str = ""
    """The template's variables as a JSON object, not read yet; empty for none."""
    template_name: str = ""
    """Which of the model's chat templates; empty for the one that transformers takes."""


@dataclass(frozen=True, slots=True)
class TokenInput:
    """A prompt as token ids, used as they are."""

    token_ids: tuple[int, ...]


GenerationInput: TypeAlias = str | ChatInput | TokenInput


@dataclass(frozen=True, slots=True)
class DecodingRequest:
    """Decoding settings as given; see `Decoding` for their meaning."""

    strategy: Strategy | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    num_return_sequences: int | None = None
    add_special_tokens: bool | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    bad_words: tuple[str, ...] = ()
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    seed: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: EarlyStopping | None = None
    forced: str | TokenInput | None = None


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """What to record, as asked for."""

    detail: TraceDetail | None = None
    num_candidates: int | None = None
    prompt: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request, well-formed, not yet held against a model."""

    input: GenerationInput
    digest: str
    """What equal requests have in common: see GenerationStarted.request_digest."""
    former_digest: str = ""
    """The digest that older versions had on record for it, where that is another one."""
    model: str = ""
    decoding: DecodingRequest = field(default_factory=DecodingRequest)
    trace: TraceRequest = field(default_factory=TraceRequest)
    size_bytes: int = 0
    """On the wire: says whether working on it is a matter of microseconds."""
    generation_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    disconnect_grace_s: float = 0.0
    max_duration_s: float | None = None
