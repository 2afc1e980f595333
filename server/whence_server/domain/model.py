"""What is known of a loaded model: its identity, its limits, its text side."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from whence_server.domain.decoding import GenerationDefaults


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
        chat_template: Jinja source; several by their names; or None where the model has none.
        special_tokens: the template's variables, such as {"bos_token": "<s>"}.
        split_special_tokens: special tokens that a text spells out are encoded as plain text.
        cleans_up_spaces: spaces before punctuation are removed from decoded text.
        fill_token: a place to fill in, which the tokenizer's class encodes in its own way; empty
            where there is none.
    """

    tokenizer_json: str
    chat_template: str | Mapping[str, str] | None
    special_tokens: dict[str, str]
    split_special_tokens: bool = False
    cleans_up_spaces: bool = False
    fill_token: str = ""


@dataclass(frozen=True, slots=True)
class Environment:
    """What else the numbers depend on."""

    whence_version: str
    torch_version: str
    transformers_version: str
    dtype: str
    device: str
    num_threads: int
    attention_implementation: str


@dataclass(frozen=True, slots=True)
class InternalsInfo:
    """What can be recorded of what happens inside a model.

    Attributes:
        source_method: how sources are found; empty where they cannot be.
        unavailable: "sources" and "layers" where the model cannot give them, and why.
    """

    source_method: str = ""
    unavailable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingRunRef:
    """The training run that made a model's weights, as far as it is on record."""

    training_run_id: str
    trace_id: str
    """W3C id of the run's trace, 32 hex digits."""
    span_id: str
    """And of its root span, 16 hex digits."""
    step: int
    """The optimizer step after which the weights were saved."""
    record_head: str
    """The newest hash of the run's record when the model was loaded, 64 hex digits."""


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """An adapter that is part of a loaded model."""

    peft_type: str
    """"LORA", ..."""
    digest: str
    """Model signing's digest over the adapter's configuration and weights."""
    base: str
    """The base's name in the adapter's configuration; "" where it lies beside the adapter."""
    base_model_digest: str
    """See `ModelInfo.model_digest`: that of the base alone; "" where it has no tokenizer."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model, as the engine reports it once it is ready."""

    name: str
    architecture: str
    """The transformers class, e.g. "GPT2LMHeadModel"."""
    num_parameters: int
    num_layers: int
    vocabulary_size: int
    """Rows of the output head; may exceed the tokenizer's."""
    max_context_length: int
    model_digest: str
    tokenizer_digest: str
    weights_digest: str
    files: tuple[FileDigest, ...]
    loaded_files: tuple[str, ...]
    batched: bool
    """Whether its sequences are decoded together."""
    environment: Environment
    defaults: GenerationDefaults
    text: TextFiles
    internals: InternalsInfo = field(default_factory=InternalsInfo)
    directory: str = ""
    """Where its files lie on this machine."""
    training_run: TrainingRunRef | None = None
    """Filled in by the front, which knows the records."""
    adapter: AdapterInfo | None = None
