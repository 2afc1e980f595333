"""A generation as it was asked for: unset fields are None until the model fills them in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from whence_server.domain.decoding import DecodingRequest, TokenInput, TraceRequest


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


GenerationInput: TypeAlias = str | ChatInput | TokenInput


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
