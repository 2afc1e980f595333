"""A generation request as received: unset fields are None."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from whence_server.domain.chat import ChatInput
from whence_server.domain.decoding import DecodingRequest, TokenInput, TraceRequest
from whence_server.domain.forking import ForkOrigin

GenerationInput: TypeAlias = str | ChatInput | TokenInput


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One well-formed request, not yet checked against the model."""

    input: GenerationInput
    digest: str
    """Digest that equal requests share; see GenerationStarted.request_digest."""
    former_digest: str = ""
    """Digest that older versions recorded for the request, if it differs; else empty."""
    model: str = ""
    decoding: DecodingRequest = field(default_factory=DecodingRequest)
    trace: TraceRequest = field(default_factory=TraceRequest)
    size_bytes: int = 0
    """Size of the serialised request, an estimate of the time to prepare it."""
    generation_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    disconnect_grace_s: float = 0.0
    max_duration_s: float | None = None
    adapter: str = ""
    """Name of an adapter of the model; empty for none."""
    upstream_parameters_json: str = ""
    """Fields of the upstream's own API, as a JSON object; empty for none."""
    fork: ForkOrigin | None = None
    """Origin of a branch; None for every other generation."""
