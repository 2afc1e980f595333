"""Description of a loaded model: identity, limits, defaults and tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from whence_server.domain.decoding import GenerationDefaults
from whence_server.domain.observation import WeightsOrigin
from whence_server.domain.upstream import UpstreamInfo


class StepKernels(StrEnum):
    """Kernels that decoding steps may use."""

    EXACT = "exact"
    """Those that give the logits of the model's modules, to the bit."""
    PACKED = "packed"
    """Also those with packed weights in float32, whose logits differ by rounding."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """One file of a model's directory."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TextFiles:
    """The tokenizer as the front uses it, without transformers.

    Attributes:
        tokenizer_json: the serialised `tokenizers.Tokenizer`.
        chat_template: Jinja source, or several by name; None if the model has none.
        special_tokens: the template's variables, such as {"bos_token": "<s>"}.
        split_special_tokens: True if special tokens in a text are encoded as plain text.
        cleans_up_spaces: True if spaces before punctuation are removed from decoded text.
        fill_token: infilling token, which the tokenizer's class encodes specially; empty if there
            is none.
    """

    tokenizer_json: str
    chat_template: str | Mapping[str, str] | None
    special_tokens: dict[str, str]
    split_special_tokens: bool = False
    cleans_up_spaces: bool = False
    fill_token: str = ""


@dataclass(frozen=True, slots=True)
class Environment:
    """Versions and settings that the model's numbers depend on, besides its files."""

    whence_version: str
    torch_version: str
    transformers_version: str
    dtype: str
    device: str
    num_threads: int
    attention_implementation: str
    step_kernels: str = ""
    """"packed" if the logits of decoding steps differ from those of the modules by rounding; "" if
    they are the same to the bit."""


@dataclass(frozen=True, slots=True)
class InternalsInfo:
    """Internals of a model that can be recorded.

    Attributes:
        source_method: method that computes sources; empty if the model gives none.
        unavailable: reason for each of "sources" and "layers" that the model does not give.
        step_kernels: kernels of the steps from which they are read; see `Environment.step_kernels`.
    """

    source_method: str = ""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    step_kernels: str = ""


@dataclass(frozen=True, slots=True)
class TrainingRunRef:
    """Reference to the training run that made a model's weights."""

    training_run_id: str
    trace_id: str
    """W3C id of the run's trace, 32 hex digits."""
    span_id: str
    """W3C id of the run's root span, 16 hex digits."""
    step: int
    """Optimizer step after which the weights were saved."""
    record_head: str
    """Newest hash of the run's record when the model was loaded, 64 hex digits."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter that is part of a loaded model."""

    peft_type: str
    """PEFT's name of the type, e.g. "LORA"."""
    digest: str
    """OpenSSF model signing digest over the adapter's configuration and weights."""
    base: str
    """The base model's name in the adapter's configuration; "" if both are in one directory."""
    base_model_digest: str
    """`ModelInfo.model_digest` of the base alone; "" if the base has no tokenizer."""


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter that a request can name, and that is then added to the model."""

    name: str
    """Name in requests."""
    identity: AdapterInfo
    """Its type, digest and base, which is the served model."""
    weights_digest: str
    """Digest of the adapter's tensors in memory; see `NamedAdapter` in model.proto."""
    files: tuple[FileDigest, ...]
    """The adapter's configuration and weights."""
    internals: InternalsInfo = field(default_factory=InternalsInfo)
    """Internals of the model with this adapter."""
    step_kernels: str = ""
    """`Environment.step_kernels` of the model with this adapter."""
    directory: str = ""
    """Directory of the adapter's files on this machine."""
    training_run: TrainingRunRef | None = None
    """Filled in by the front, which reads the training records."""


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Format of a model's weight files."""

    format: str = ""
    """"safetensors", "pytorch" or "gguf"."""
    quantization: str = ""
    """Quantization of the weights in the files, e.g. "Q4_1"; "" for none."""
    dequantized: bool = False
    """True if the weights were dequantized when they were loaded."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model, as the engine reports it when it is ready.

    Numbers and texts that an upstream does not tell are 0 and "".
    """

    name: str
    architecture: str
    """The transformers class, e.g. "GPT2LMHeadModel"."""
    num_parameters: int
    num_layers: int
    vocabulary_size: int
    """Rows of the output head; may exceed the tokenizer's vocabulary."""
    max_context_length: int
    model_digest: str
    tokenizer_digest: str
    weights_digest: str
    files: tuple[FileDigest, ...]
    loaded_files: tuple[str, ...]
    batched: bool
    """True if sequences are decoded together."""
    environment: Environment
    defaults: GenerationDefaults
    text: TextFiles
    internals: InternalsInfo = field(default_factory=InternalsInfo)
    directory: str = ""
    """Directory of the model's files on this machine."""
    training_run: TrainingRunRef | None = None
    """Filled in by the front, which reads the training records."""
    adapter: AdapterInfo | None = None
    """Adapter that is part of the model in every generation."""
    adapters: tuple[NamedAdapter, ...] = ()
    """Adapters that requests can name, sorted by name."""
    prefix_cache_tokens: int = 0
    """Maximum number of positions in the prefix cache; 0 if it is off."""
    source: SourceInfo = SourceInfo()
    upstream: UpstreamInfo | None = None
    """Upstream that serves the model; None for whence's own engine."""
    weights_origin: WeightsOrigin = WeightsOrigin.DIGESTS
